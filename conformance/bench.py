"""Where a check gets its managers from: fresh ones, on the implementation under test."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pagedkv.conformance.driver import Driver
from pagedkv.conformance.implementation import Capability, Implementation
from pagedkv.conformance.violation import expect
from pagedkv.reference.media import Media
from pagedkv.traces.manager_setup import ManagerSetup

CHOICES = frozenset({"POOL-3", "POOL-4", "POOL-5", "POOL-8", "REL-2", "STEP-4"})
"""Who follows these chooses pages and victims on the device as the reference does."""

CHOICES_BELOW = frozenset({"TIER-2", "TIER-4"})
"""And these, in the tiers below."""


class Skip(Exception):
    """A check turns out not to apply; the reason is for people."""


class Bench:
    """Builds managers for one check, and clears away after it.

    Args:
        implementation: What is checked.
        reference: What its choices are compared with, if it declares that it makes the same;
            ``None``: nothing.
        impl: What the implementation is known by, for reproductions.
    """

    def __init__(
        self, implementation: Implementation, reference: Implementation | None, impl: str
    ) -> None:
        self.implementation = implementation
        self.reference = reference
        self.impl = impl
        self.size = implementation.page_size
        """Tokens per page."""
        self.examples = 100
        """Generated runs per check."""
        self.drivers: list[Driver] = []
        self._folder = Path(tempfile.mkdtemp(prefix="pagedkv-conformance-"))

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        for driver in self.drivers:
            driver.give_up()
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def fresh(self) -> Iterator["Bench"]:
        """A bench for one of many runs of a check; what it did last is what is reported."""
        with Bench(self.implementation, self.reference, self.impl) as inner:
            self.drivers = inner.drivers
            yield inner

    # Any: fields of ManagerSetup, which checks them.
    def setup(self, **options: Any) -> ManagerSetup:
        """A small setup: 8 pages, on the implementation's page size and write policy."""
        n = len(self.drivers)
        defaults: dict[str, Any] = {
            "page_size": self.size,
            "total_num_pages": 8,
            "max_batch_size": 8,
            "layers": 2,
            "head_dim": 2,
            "write_policy": self.implementation.write_policies[0],
            "disk_dir": self._folder / f"disk-{n}",
            "store_endpoint": f"store-{self._folder.name}-{n}",
        }
        setup = ManagerSetup(**(defaults | options))
        if setup.disk_dir is not None:
            setup.disk_dir.mkdir(parents=True, exist_ok=True)
        return setup

    def driver(self, **options: Any) -> Driver:
        """A driver with a fresh manager; see :meth:`setup` for the options."""
        return self.drive(self.setup(**options))

    def drive(self, setup: ManagerSetup) -> Driver:
        """A driver with a manager of that setup."""
        twin = None
        if self.reference is not None and setup.auto_land and self._chooses_alike(setup):
            elsewhere = setup.model_copy(
                update={"disk_dir": self._folder / f"twin-{len(self.drivers)}", "media": Media()}
            )
            twin = Driver(self.reference, elsewhere)
        log = self.drivers[0].log if self.drivers else None
        driver = Driver(self.implementation, setup, impl=self.impl, twin=twin, log=log)
        self.drivers.append(driver)
        return driver

    def controlled(self, **options: Any) -> Driver:
        """A driver that decides when transfers land: for checks that need ``transfers``."""
        return self.driver(auto_land=False, **options)

    def restart(self, driver: Driver, **changes: Any) -> Driver:
        """A manager on the disk and in the store of an earlier one, which is shut down first."""
        driver.shutdown()
        restarted = Driver(
            self.implementation,
            driver.setup.model_copy(update=changes),
            impl=self.impl,
            log=driver.log,
        )
        self.drivers.append(restarted)
        return restarted

    def _chooses_alike(self, setup: ManagerSetup) -> bool:
        follows = self.implementation.follows
        if not follows >= CHOICES:
            return False
        if (setup.host_pages or setup.store) and not follows >= CHOICES_BELOW | {"METRIC-6"}:
            return False
        return setup.replicas == 1 or "ALLOC-10" in follows

    def needs(self, capability: Capability, why: str = "") -> None:
        """Leave a check that makes no sense without a capability.

        Raises:
            Skip: The implementation lacks it.
        """
        if not (self.drivers[-1] if self.drivers else self.driver()).can(capability):
            raise Skip(f"{self.implementation.name} has no {capability}" + (why and f": {why}"))

    def prompt(self, pages: int, start: int = 0, *, more: int = 1) -> range:
        """Tokens of ``pages`` full pages and ``more``; prompts share what they have in common."""
        first = start * self.size
        return range(first, first + pages * self.size + more)

    def all_clear(self) -> None:
        """After a check: release what is left, and see that every page comes back.

        Raises:
            Violation: Pages or requests stay behind.
        """
        for driver in self.drivers:
            if driver.closed:
                continue
            for ctx in list(driver.contexts.values()):
                driver.release(ctx)
            if not driver.setup.auto_land:
                driver.land_all()
            for replica in range(driver.setup.replicas):
                expect(
                    "POOL-2",
                    driver.manager.num_free_blocks(replica),
                    driver.setup.total_num_pages,
                    "free pages when every request is gone and every transfer has settled",
                )
            driver.shutdown()
