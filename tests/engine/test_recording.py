"""A server's run can be written and validated, with a header made of the manager's arguments."""

from pathlib import Path

import pytest
from tests.engine.conftest import Making, prompt, serve

from pagedkv.cli import main
from pagedkv.engine import PagedKVCacheManager
from pagedkv.recording import run_setup_of, write_run
from pagedkv.traces.events.recorder import FlightRecorder


@pytest.mark.parametrize("cache", ["mha", "mla", "fp8", "tree"])
async def test_a_written_run_is_one_that_the_specification_allows(
    make: Making, tmp_path: Path, cache: str
) -> None:
    recorder = FlightRecorder(1000)
    tiers = {"host_pages": 4, "disk_pages": 8, "disk_dir": tmp_path / "disk"}
    setup = make.setup(cache=cache, shards=2, replicas=2, model_fingerprint="m", **tiers)
    params = setup.params()
    manager = PagedKVCacheManager(params, setup.session(), 6, 4, max_batch_size=4, tracer=recorder)
    for n in range(6):
        ctx = make.request(prompt(3, start=100 * (n % 3)), f"r{n}")
        async with manager.admit(ctx):
            manager.runtime_inputs([[ctx], []])
            ctx.update(7)
            manager.step([[ctx], []])
    await manager.aclose()
    run = tmp_path / "run.jsonl"
    write_run(run, run_setup_of(params, 6, 4, max_batch_size=4), recorder)
    with pytest.raises(SystemExit) as done:
        main(["trace", "check", str(run)])
    assert done.value.code == 0


async def test_a_recorder_that_has_lost_the_beginning_says_so(make: Making, tmp_path: Path) -> None:
    recorder = FlightRecorder(3)
    manager = make.engine(tracer=recorder)
    await serve(manager, make.request(prompt(1), "r"))
    await manager.aclose()
    with pytest.raises(ValueError, match="lost the first"):
        write_run(tmp_path / "run.jsonl", make.setup().run_setup(), recorder)
    assert not list(tmp_path.iterdir())
