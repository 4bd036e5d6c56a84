"""What is built from a checkout, installed and imported far away from it."""

import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import pagedkv

# One worker builds and installs; the others need not do it again.
pytestmark = pytest.mark.xdist_group("distribution")

LARGEST_WHEEL = 2 * 2**20


def run(*command: str | Path, folder: Path) -> str:
    """The output of ``command``; a failure shows all it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(*options: str, source: Path, into: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *options]
    run(*command, "--outdir", into, source, folder=into)


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def dist(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this checkout and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build(source=root, into=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    [wheel] = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and the dependencies of this one within reach."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "-qq", "--python", str(folder / "bin/python")]
    run(*pip, "install", "--no-index", "--no-deps", wheel, folder=folder)
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder


def test_wheel_holds_the_package_and_nothing_else(
    wheel: Path, package_files: dict[str, Path]
) -> None:
    packaged = {name for name in names_in(wheel) if ".dist-info/" not in name}
    assert packaged == {f"pagedkv/{name}" for name in package_files}


def test_wheel_has_its_types_and_its_specification(wheel: Path) -> None:
    assert {"pagedkv/py.typed", "pagedkv/reference/SPEC.md"} <= names_in(wheel)


def test_wheel_has_no_tests_benchmarks_or_docs(wheel: Path) -> None:
    strangers = {"tests", "test", "conftest.py", "benchmarks", "docs", "examples", "scripts"}
    for name in names_in(wheel):
        path = Path(name)
        assert not strangers & set(path.parts), name
        assert not path.name.startswith("test_"), name


def test_wheel_stays_small(wheel: Path) -> None:
    assert wheel.stat().st_size < LARGEST_WHEEL


def test_checkout_and_sdist_make_the_same_wheel(root: Path, wheel: Path, tmp_path: Path) -> None:
    build("--wheel", source=root, into=tmp_path)
    assert names_in(tmp_path / wheel.name) == names_in(wheel)


def test_sdist_has_each_part_once_and_no_links(dist: Path, part: str) -> None:
    [sdist] = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    inits = [m.name for m in members if m.name.endswith(f"/{part}/__init__.py")]
    assert [name.split("/", 1)[1] for name in inits] == [f"src/pagedkv/{part}/__init__.py"]


def test_recorded_traces_travel_with_the_package(
    dist: Path, wheel: Path, package_files: dict[str, Path]
) -> None:
    data = {name for name in package_files if name.startswith("traces/data/")}
    assert {"traces/data/events/index.toml", "traces/data/golden_identities.json"} < data
    [sdist] = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/src/pagedkv/")[2] for name in archive.getnames()}
    assert data <= names
    assert {f"pagedkv/{name}" for name in data} <= names_in(wheel)


def test_installed_part_imports_from_the_wheel(
    environment: Path, part: str, tmp_path: Path
) -> None:
    code = f"import pagedkv.{part}; print(pagedkv.{part}.__file__)"
    printed = run(environment / "bin/python", "-c", code, folder=tmp_path)
    assert Path(printed.strip()).is_relative_to(environment)


def test_console_script_tells_its_version(environment: Path, tmp_path: Path) -> None:
    assert pagedkv.__version__ in run(environment / "bin/pagedkv", "--version", folder=tmp_path)


def test_module_runs_as_the_console_script_does(environment: Path, tmp_path: Path) -> None:
    python = environment / "bin/python"
    assert pagedkv.__version__ in run(python, "-m", "pagedkv", "--version", folder=tmp_path)
