"""What the suite has made of the zoo: as data, as a page, and as a table for the documentation."""

from collections.abc import Mapping, Sequence
from importlib.resources import files

import jinja2

from pagedkv.conformance.check import Check
from pagedkv.conformance.zoo.catalogue import WAITING, ZOO
from pagedkv.conformance.zoo.sources import url_of
from pagedkv.conformance.zoo.visit import Visit

VERSION = 1
"""Version of the JSON; readers refuse a larger one."""


def as_data(visits: Sequence[Visit]) -> dict[str, object]:
    """Everything in plain values, for JSON."""
    from pagedkv import __version__

    return {
        "format": "pagedkv-zoo",
        "version": VERSION,
        "pagedkv": __version__,
        "specimens": [_visit(visit) for visit in visits],
        "waiting": [
            {"number": w.number, "happens": w.happens, "sources": _sources(w.source), "why": w.why}
            for w in WAITING
        ],
    }


def _visit(visit: Visit) -> dict[str, object]:
    specimen = visit.specimen
    return {
        "number": specimen.number,
        "name": specimen.name,
        "happens": specimen.happens,
        "sources": _sources(specimen.source),
        "claims": sorted(specimen.claims),
        "caught": bool(visit.caught_by),
        "as_expected": visit.as_expected,
        "caught_by": [
            {
                "check": outcome.check.id,
                "rule": outcome.check.rule.id,
                "broken_rule": outcome.rule,
                "reason": outcome.reason,
                "reproduction": outcome.reproduction,
            }
            for outcome in visit.caught_by
        ],
        "seconds": round(visit.seconds, 4),
    }


def _sources(sources: Sequence[str]) -> list[dict[str, str | None]]:
    return [{"name": source, "url": url_of(source)} for source in sources]


def as_page(visits: Sequence[Visit]) -> str:
    """One self-contained HTML page."""
    from pagedkv import __version__

    source = files("pagedkv.conformance.zoo").joinpath("zoo.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(source).render(
        visits=visits, waiting=WAITING, url_of=url_of, version=__version__
    )


def as_markdown(checks: Mapping[str, Check]) -> str:
    """docs/zoo.md: every bug, and the check that should catch it."""
    lines = [
        "# The zoo",
        "",
        "Managers of the reference with one bug each, all of which really happened in public",
        "systems. `pagedkv zoo` shows them to the conformance suite, which has to catch every one.",
        "They claim to follow no SHOULD rule, so that MUST rules have to do, except where the bug",
        "breaks nothing else: then the table says which they claim to follow.",
        "",
        "This file is written by `python -m pagedkv.conformance.zoo.report > docs/zoo.md`.",
        "",
        "| | what happens | where it did | caught by | rule |",
        "|---|---|---|---|---|",
    ]
    for specimen in ZOO:
        check = checks[specimen.expected[0]]
        rule = f"{check.rule.id} (claimed)" if check.rule.id in specimen.claims else check.rule.id
        lines.append(
            f"| {specimen.number} | {specimen.happens} | {_links(specimen.source)} "
            f"| `{check.id}` | {rule} |"
        )
    lines += [
        "",
        "## Bugs that come with the engine",
        "",
        "The reference cannot have these: it moves bytes at once, and has no forward in flight.",
        "",
        "| | what happens | where it did | why not yet |",
        "|---|---|---|---|",
    ]
    lines += [f"| {w.number} | {w.happens} | {_links(w.source)} | {w.why} |" for w in WAITING]
    return "\n".join(lines) + "\n"


def _links(sources: Sequence[str]) -> str:
    return ", ".join(f"[{s}]({url})" if (url := url_of(s)) else s for s in sources) or "—"


if __name__ == "__main__":
    from pagedkv.conformance.suite import all_checks

    print(as_markdown({check.id: check for check in all_checks()}), end="")
