"""Fixtures of the command line's tests: one way to run it, and a small workload."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pagedkv.cli import main
from pagedkv.traces import GeneratorParameters, generate, write_workload


@dataclass
class Outcome:
    """What a command has left on the terminal."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # whatever the command wrote
        return json.loads(self.out)


Pagedkv = Callable[..., Outcome]


@pytest.fixture
def pagedkv(capfd: pytest.CaptureFixture[str]) -> Pagedkv:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        assert isinstance(exit.value.code, int)
        return Outcome(exit.value.code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 requests of mixed traffic."""
    path = tmp_path_factory.mktemp("workload") / "mix.jsonl.gz"
    write_workload(path, *generate(GeneratorParameters(requests=200)))
    return path
