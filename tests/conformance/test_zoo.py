"""The suite catches every specimen of the zoo, and nothing that is not broken."""

import json
import os
from pathlib import Path

import pytest

from pagedkv.cli.app import run
from pagedkv.conformance.implementation import Implementation
from pagedkv.conformance.suite import Plan, all_checks, run_check
from pagedkv.conformance.zoo.catalogue import BUGS, WAITING, ZOO
from pagedkv.conformance.zoo.change import Edit, Swap, in_force
from pagedkv.conformance.zoo.report import as_markdown
from pagedkv.conformance.zoo.sources import url_of
from pagedkv.conformance.zoo.specimen import BrokenManager, Specimen, broken_reference
from pagedkv.implementations import resolve_implementation
from pagedkv.reference.errors import PoolCorruptedError
from pagedkv.reference.pool import PagePool
from pagedkv.traces.manager_setup import ManagerSetup

DOCS = Path(__file__).parents[2] / "docs"

CHECKS = {check.id: check for check in all_checks()}

SETUP = ManagerSetup(page_size=4, total_num_pages=8)


def status_of(implementation: Implementation, check_id: str) -> str:
    return run_check(CHECKS[check_id], Plan(implementation, "zoo", timeout_s=30)).status


def named(specimen: Specimen) -> str:
    return f"{specimen.number}-{specimen.name}"


@pytest.mark.parametrize("specimen", ZOO, ids=named)
def test_specimen_is_caught_by_the_checks_that_should(specimen: Specimen) -> None:
    missed = [c for c in specimen.expected if status_of(specimen.implementation, c) != "failed"]
    assert specimen.expected
    assert not missed


@pytest.mark.parametrize(
    ("check_id", "claims"),
    sorted({(check, tuple(sorted(s.claims))) for s in ZOO for check in s.expected}),
)
def test_what_is_not_broken_passes_them(check_id: str, claims: tuple[str, ...]) -> None:
    assert status_of(broken_reference("untouched", (), frozenset(claims)), check_id) == "passed"


def test_every_bug_of_the_list_is_there_or_waits() -> None:
    there, waiting = {s.number for s in ZOO}, {w.number for w in WAITING}
    assert there | waiting == BUGS
    assert not there & waiting


def test_names_are_unique() -> None:
    assert len({s.name for s in ZOO}) == len(ZOO)


@pytest.mark.parametrize("specimen", ZOO[:1], ids=named)
def test_specimens_are_implementations_by_name(specimen: Specimen) -> None:
    found = resolve_implementation(f"pagedkv.conformance.zoo.catalogue:{specimen.name}")
    assert found.name == specimen.implementation.name


def test_documentation_lists_what_is_there() -> None:
    # Write it with: python -m pagedkv.conformance.zoo.report > docs/zoo.md
    assert (DOCS / "zoo.md").read_text(encoding="utf-8") == as_markdown(CHECKS)


def test_sources_in_trackers_have_a_page() -> None:
    assert url_of("vllm#42571") == "https://github.com/vllm-project/vllm/issues/42571"
    assert url_of("MAX 26.5") is None


FORGIVING = Edit(PagePool.release, {"        raise": "        return\n            raise"})


class OtherPool(PagePool):
    """Stands in for the pool of one manager."""


def test_changes_end_with_their_block() -> None:
    pool = PagePool(2)
    with in_force([FORGIVING]):
        pool.release(0)
    with pytest.raises(PoolCorruptedError):
        pool.release(0)


def test_changes_end_with_an_exception_as_well() -> None:
    with pytest.raises(KeyError), in_force([FORGIVING]):
        raise KeyError
    with pytest.raises(PoolCorruptedError):
        PagePool(2).release(0)


def test_broken_managers_of_one_process_do_not_infect_each_other() -> None:
    changed = BrokenManager(SETUP, (Swap(PagePool, OtherPool),))
    untouched = BrokenManager(SETUP, ())
    assert type(changed._state.pools[0]) is OtherPool
    assert type(untouched._state.pools[0]) is PagePool


def test_a_change_of_a_text_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="'no such text' 0 times"):
        _ = Edit(PagePool.release, {"no such text": ""}).places


def test_command_tells_what_caught_a_bug(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "zoo.html"
    assert run(["zoo", "--only", "3", "--html", os.fspath(page), "--json", "-"]) == 0
    (specimen,) = json.loads(capfd.readouterr().out)["specimens"]
    assert (specimen["number"], specimen["caught"], specimen["as_expected"]) == (3, True, True)
    assert "1 of 1 broken managers were caught" in page.read_text(encoding="utf-8")


def test_command_refuses_a_bug_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["zoo", "--only", "99"]) == 2
    assert "no '99'" in capfd.readouterr().err
