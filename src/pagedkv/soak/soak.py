"""Serving traffic on the real engine, with real threads and a real disk."""

import asyncio
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from random import Random

import psutil

from pagedkv.conformance.bench import Recording
from pagedkv.conformance.violation import Violation
from pagedkv.engine import PagedKVCacheManager
from pagedkv.engine_simulation import exceptions_logged_by_the_engine
from pagedkv.reference.events import DiskOpened, TransferFailed
from pagedkv.soak.clients import SoakClients, Tally
from pagedkv.soak.report import SoakReport
from pagedkv.soak.samples import Sample, Sampler
from pagedkv.soak.settings import PAGE_SIZE, SoakSettings
from pagedkv.soak.traffic import traffic
from pagedkv.soak.troubled_files import TroubledFiles, troubles
from pagedkv.soak.validator import Validator, Window

MOST_WAITING = 20_000
"""Events that may wait to be checked; then clients wait, too."""

STANDSTILL_S = 60.0
"""Seconds without any request that ends after which somebody is stuck."""

ENDING_S = 60.0
"""Seconds in which an engine has to end once its clients are gone."""


class SoakFailedError(AssertionError):
    """Something is wrong, and nothing more is to be learnt."""


class Soak:
    """One soak, from its beginning to its end.

    Args:
        settings: How long, where, and how hard.
        on_sample: Called with each sample.
    """

    def __init__(
        self, settings: SoakSettings, on_sample: Callable[[Sample], None] = lambda sample: None
    ) -> None:
        self.report = SoakReport(settings)
        """What is known so far."""
        self._settings, self._on_sample = settings, on_sample
        self._rng = Random(f"soak {settings.seed}")
        self._tally = Tally()
        self._sampler = Sampler(self._tally)
        self._files = TroubledFiles(seed=settings.seed)
        self._trouble = "calm"
        self._prompts = traffic(settings.seed, PAGE_SIZE)
        self._events = Recording()
        self._windows: deque[Window] = deque()
        self._stopping = asyncio.Event()
        self._begin_s = time.monotonic()
        self._descriptors: int | None = None
        self._begins = True

    def stop(self) -> None:
        """End early, cleanly."""
        self.report.is_complete = False
        self._stopping.set()

    async def run(self) -> SoakReport:
        """Serve until the time is over, somebody stops it, or something is wrong."""
        report = self.report
        setup = self._settings.manager_setup(Recording()).run_setup()
        validator = await asyncio.to_thread(Validator, setup)
        with closing(validator), exceptions_logged_by_the_engine() as logged:
            try:
                async with asyncio.TaskGroup() as group:
                    validating = group.create_task(self._validate(validator))
                    while self._left_s > 0 and not self._stopping.is_set():
                        await self._life()
                    report.seconds = self._at_s
                    while self._windows:
                        await asyncio.sleep(0.05)
                    validating.cancel()
            except Exception as error:
                report.problems += problems_in(error)
                report.seconds = self._at_s
        report.problems += logged
        report.requests = self._tally.requests
        report.pages_checked = self._tally.pages_checked
        return report

    @property
    def _at_s(self) -> float:
        return time.monotonic() - self._begin_s

    @property
    def _left_s(self) -> float:
        return self._settings.seconds - self._at_s

    async def _life(self) -> None:
        """Open the engine, serve, and close it.

        Raises:
            Exception: Something is wrong.
        """
        manager = await self._opened()
        try:
            await self._served(manager)
            await in_time(self._drained(manager), "transfers do not land")
            self._check_leaks(manager)
            self._sampler.life_ends(manager)
            await in_time(manager.aclose(), "closing does not end")
        except BaseException:
            with suppress(Exception):
                await in_time(manager.crash(), "the engine does not end")
            raise
        self._cut(ends=True)

    async def _served(self, manager: PagedKVCacheManager) -> None:
        """Serve for the time of a life, or until somebody stops it."""
        settings = self._settings
        clients = SoakClients(manager, settings, self._prompts, self._tally, self._rng)
        async with asyncio.TaskGroup() as group:
            asides = [
                group.create_task(self._sample(manager, clients)),
                group.create_task(self._reset(manager)),
                group.create_task(
                    troubles(self._files, self._rng, settings.phase_s, self._begin_trouble)
                ),
            ]
            serving = group.create_task(clients.serve())
            with suppress(TimeoutError):
                async with asyncio.timeout(min(settings.life_s, max(0.0, self._left_s))):
                    await self._stopping.wait()
            clients.leave()
            await in_time(serving, "clients do not come to an end")
            for aside in asides:
                aside.cancel()

    async def _opened(self) -> PagedKVCacheManager:
        self._events = events = Recording()
        setup = self._settings.manager_setup(events)
        manager = await asyncio.to_thread(
            PagedKVCacheManager,
            setup.params(),
            setup.session(),
            setup.total_num_pages,
            setup.host_pages or 0,
            max_batch_size=setup.max_batch_size,
            tracer=events,
            files=self._files,
        )
        survivors = next(event.keys for event in events if isinstance(event, DiskOpened))
        self.report.survivors += len(survivors)
        self.report.lives += 1
        self._begins = True
        return manager

    def _begin_trouble(self, name: str) -> None:
        self._trouble = name

    async def _reset(self, manager: PagedKVCacheManager) -> None:
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / self._settings.reset_s))
            manager.reset_prefix_cache()
            self.report.resets += 1

    async def _sample(self, manager: PagedKVCacheManager, clients: SoakClients) -> None:
        """Look at everything now and then; notice if nothing ends any more."""
        ended, since_s = self._tally.ended, self._at_s
        while True:
            due_s = self._at_s + self._settings.sample_s
            await asyncio.sleep(self._settings.sample_s)
            self._cut()
            waiting = sum(len(window.events) for window in self._windows)
            sample = self._sampler.sample(
                manager,
                at_s=self._at_s,
                life=self.report.lives - 1,
                trouble=self._trouble,
                late_s=self._at_s - due_s,
                failures=self.report.failures,
                validated=self.report.events,
                waiting=waiting,
            )
            self.report.samples.append(sample)
            self._on_sample(sample)
            (clients.pause if waiting > MOST_WAITING else clients.go_on)()
            if self._tally.ended > ended or waiting > MOST_WAITING:
                ended, since_s = self._tally.ended, self._at_s
            elif self._at_s - since_s > STANDSTILL_S:
                raise SoakFailedError(
                    f"no request has ended for {STANDSTILL_S:.0f} s; "
                    f"in flight: {manager.in_flight()}"
                )

    def _cut(self, *, ends: bool = False) -> None:
        """What has been reported since the last time is a window."""
        events = list(self._events)
        self._events.clear()
        for event in events:
            if isinstance(event, TransferFailed):
                self.report.failures[event.reason] += 1
        self._windows.append(Window(events, self._begins, ends))
        self._begins = False

    async def _validate(self, validator: Validator) -> None:
        """Check one window after the other, in another process."""
        while True:
            if not self._windows:
                await asyncio.sleep(0.05)
                continue
            window = self._windows[0]
            wrong = await asyncio.to_thread(validator.check, window)
            if wrong is not None:
                raise SoakFailedError(wrong)
            self.report.events += len(window.events)
            self._windows.popleft()

    async def _drained(self, manager: PagedKVCacheManager) -> None:
        while manager.in_flight():
            await asyncio.sleep(0.01)

    def _check_leaks(self, manager: PagedKVCacheManager) -> None:
        """With nobody left, every page is free, and no more descriptors are open than before.

        Raises:
            SoakFailedError: Something was not given back.
        """
        for replica in range(len(manager.params.devices_per_replica)):
            left = manager.statistics(replica)
            if left.held or left.pinned:
                raise SoakFailedError(f"pages that never come back on replica {replica}: {left}")
        now = psutil.Process().num_fds()
        if self._descriptors is None:
            self._descriptors = now
        elif now > self._descriptors:
            raise SoakFailedError(
                f"{now} descriptors are open, but {self._descriptors} in the first life"
            )


async def in_time(work: Awaitable[object], complaint: str) -> None:
    """Wait for the end of something.

    Raises:
        SoakFailedError: It does not come.
    """
    try:
        async with asyncio.timeout(ENDING_S):
            await work
    except TimeoutError:
        raise SoakFailedError(f"{complaint} within {ENDING_S:.0f} s") from None


def problems_in(error: Exception) -> list[str]:
    """What was raised, for people: of a group, each."""
    if isinstance(error, ExceptionGroup):
        return [problem for inner in error.exceptions for problem in problems_in(inner)]
    if isinstance(error, SoakFailedError | Violation):
        return [str(error)]
    return ["".join(traceback.format_exception(error, limit=-5)).strip()]
