"""A checkout that would load wrongly says so, and says what to do."""

import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def test_part_imported_from_the_repository_root_is_refused(root: Path, part: str) -> None:
    if not (root / part).is_dir():
        pytest.skip("a source distribution has the parts in src/pagedkv only")
    done = run_python(f"import {part}", root)
    assert done.returncode == 1
    assert f"ImportError: import pagedkv.{part} instead of {part}" in done.stderr


def test_pytest_pointed_at_a_part_loads_no_second_copy(root: Path) -> None:
    if not (root / "reference").is_dir():
        pytest.skip("a source distribution has the parts in src/pagedkv only")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--doctest-modules"]
    done = subprocess.run(
        [*command, "reference/errors.py"], cwd=root, capture_output=True, text=True, check=False
    )
    assert "import pagedkv.reference instead of reference" in done.stdout


def test_part_loads_under_its_full_name(root: Path, part: str) -> None:
    assert run_python(f"import pagedkv.{part}", root).returncode == 0


def test_checkout_without_symlinks_is_told_how_to_get_them(root: Path, tmp_path: Path) -> None:
    (tmp_path / "pagedkv").mkdir()
    shutil.copy(root / "src/pagedkv/__init__.py", tmp_path / "pagedkv")
    (tmp_path / "pagedkv/reference").write_text("../../reference")
    done = run_python("import pagedkv", tmp_path)
    assert done.returncode == 1
    assert "git config core.symlinks true" in done.stderr


class TestCheckSetup:
    """``scripts/check_setup.py``, which `make` runs before it makes an environment."""

    @pytest.fixture
    def obstacle(self, root: Path) -> Callable[[], str | None]:
        obstacle: Callable[[], str | None] = runpy.run_path(str(root / "scripts/check_setup.py"))[
            "obstacle"
        ]
        return obstacle

    def test_this_checkout_has_no_obstacle(
        self, root: Path, obstacle: Callable[[], str | None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(root)
        assert obstacle() is None

    @pytest.mark.parametrize("version", [(3, 10, 13), (3, 15, 0)])
    def test_unsupported_python_is_named(
        self,
        version: tuple[int, int, int],
        obstacle: Callable[[], str | None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(sys, "version_info", version)
        message = obstacle()
        assert message is not None
        assert f"is 3.{version[1]}" in message
        assert "PYTHON=" in message

    def test_missing_symlinks_are_one_line(self, root: Path, tmp_path: Path) -> None:
        script = root / "scripts/check_setup.py"
        done = subprocess.run(
            [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "core.symlinks" in done.stderr
        assert done.stderr.count("\n") == 1
