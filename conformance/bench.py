"""Where a check gets its managers from: fresh ones, on the implementation under test."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal

from pagedkv.conformance.damage import Damage, damage
from pagedkv.conformance.driver import Driver
from pagedkv.conformance.implementation import Capability, Implementation
from pagedkv.conformance.recorded.specification import SpecificationFactory
from pagedkv.conformance.violation import expect
from pagedkv.reference.context import TextContext
from pagedkv.reference.events import Event
from pagedkv.reference.media import Media
from pagedkv.traces.manager_setup import ManagerSetup

CHOICES = frozenset({"POOL-3", "POOL-4", "POOL-5", "POOL-8", "REL-2", "STEP-4"})
"""Who follows these chooses pages and victims on the device as the reference does."""

CHOICES_BELOW = frozenset({"TIER-2", "TIER-4"})
"""And these, in the tiers below."""


class Recording(list[Event]):
    """A tracer that keeps what it is told."""

    def emit(self, event: Event) -> None:
        """Keep one event."""
        self.append(event)


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
        self.specification: SpecificationFactory | None = None
        """What recorded runs are validated against; ``None``: they are not."""
        self.drivers: list[Driver] = []
        self._crashed: list[Driver] = []
        # Made by the first manager with a disk: most checks have none.
        self._folder = Path(tempfile.gettempdir(), f"pagedkv-conformance-{token_hex(8)}")

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        for driver in self._crashed:
            driver.closed = False
        for driver in self.drivers:
            driver.give_up()
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def fresh(self) -> Iterator["Bench"]:
        """A bench for one of many runs of a check; what it did last is what is reported."""
        with Bench(self.implementation, self.reference, self.impl) as inner:
            inner.specification = self.specification
            self.drivers = inner.drivers
            yield inner

    # Any: fields of ManagerSetup, which checks them.
    def setup(self, **options: Any) -> ManagerSetup:
        """A small setup: 8 pages, on the implementation's page size, write policy and hash."""
        n = len(self.drivers)
        defaults: dict[str, Any] = {
            "page_size": self.size,
            "total_num_pages": 8,
            "max_batch_size": 8,
            "layers": 2,
            "head_dim": 2,
            "write_policy": self.implementation.write_policies[0],
            "hash_algorithm": self.implementation.hash_algorithms[0],
            "enable_prefix_caching": "prefix" in self.implementation.capabilities,
            "disk_dir": self._folder / f"disk-{n}",
            "store_endpoint": f"store-{self._folder.name}-{n}",
        }
        setup = ManagerSetup(**(defaults | options))
        if setup.disk_pages is not None and setup.disk_dir is not None:
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
                update={
                    "disk_dir": self._folder / f"twin-{len(self.drivers)}",
                    "media": Media(),
                    "tracer": None,
                }
            )
            twin = Driver(self.reference, elsewhere)
        log = self.drivers[0].log if self.drivers else None
        driver = Driver(self.implementation, setup, impl=self.impl, twin=twin, log=log)
        self.drivers.append(driver)
        return driver

    def controlled(self, **options: Any) -> Driver:
        """A driver that decides when transfers land: for checks that need ``transfers``."""
        return self.driver(auto_land=False, **options)

    def recorded(self, **options: Any) -> tuple[Driver, Recording]:
        """A driver, and the events that its manager reports as it goes."""
        recording = Recording()
        return self.driver(tracer=recording, **options), recording

    def with_chain_below(self, pages: int, **options: Any) -> Driver:
        """Like :meth:`controlled`; ``prompt(pages)`` is in host memory, and on no device."""
        driver = self.controlled(**({"host_pages": 16} | options))
        driver.serve(self.prompt(pages, more=0))
        driver.land_all()
        driver.evict_all()
        driver.land_all()
        return driver

    def restart(self, driver: Driver, **changes: Any) -> Driver:
        """A manager on the disk and in the store of an earlier one, which is shut down first."""
        if not driver.closed:
            driver.shutdown()
        return self.beside(driver, **changes)

    def crash(self, driver: Driver, **changes: Any) -> Driver:
        """A manager on the disk of an earlier one, whose process has died in what it was doing.

        Raises:
            Skip: The earlier one cannot be told so, and keeps the folder for itself.
        """
        driver.crash()
        self._crashed.append(driver)
        try:
            return self.beside(driver, **changes)
        except Exception as error:
            if callable(getattr(driver.manager, "crash", None)):
                raise
            raise Skip(f"there is no crash() to give the folder back: {error}") from error

    def beside(self, driver: Driver, **changes: Any) -> Driver:
        """One more manager on the same store, with the other one still there."""
        setup = driver.setup.model_copy(update=changes)
        log = driver.log if driver.closed else driver.log.of_another(f"manager_{len(self.drivers)}")
        other = Driver(self.implementation, setup, impl=self.impl, log=log)
        other.finds_what_is_left_by(driver)
        self.drivers.append(other)
        return other

    def damage(
        self,
        driver: Driver,
        tier: Literal["disk", "store"],
        ctx: TextContext,
        block: int,
        kind: Damage,
    ) -> None:
        """Change the ``block``-th block of a request on disk or in a store, behind its back.

        Raises:
            Skip: Nobody can tell from outside where the block is.
        """
        if not damage(driver, tier, ctx, block, kind):
            raise Skip(f"block {block} of {ctx.request_id} is not to be found in the {tier} tier")

    def makes_no_difference(
        self, rule: str, run: Callable[[Driver, bool], object], what: str, **options: Any
    ) -> None:
        """Run the same calls on two fresh managers, one of them with something in between.

        Args:
            rule: The rule which says that it makes no difference.
            run: Makes the calls, with the extra one if its second argument is true, and returns
                what the manager did afterwards.
            what: What the extra call is.
            options: As for :meth:`setup`.

        Raises:
            Violation: The two do not behave alike.
            Skip: Without anything in between they do not, either.
        """
        without, with_it = (run(self.driver(**options), extra) for extra in (False, True))
        if with_it != without and run(self.driver(**options), False) != without:
            raise Skip("two managers of one setup do not choose alike")
        expect(rule, with_it, without, f"what a manager does after {what}")

    def _chooses_alike(self, setup: ManagerSetup) -> bool:
        follows = self.implementation.follows
        if not follows >= CHOICES:
            return False
        if (setup.host_pages or setup.store) and not follows >= CHOICES_BELOW | {"METRIC-6"}:
            return False
        if setup.auto_land and setup.write_policy == "write_back" and "XFER-6" not in follows:
            # Between two cleanings of one allocation, what follows from the first may have landed
            # or not: that decides whether the second finds a slot.
            return False
        return setup.replicas == 1 or "ALLOC-10" in follows

    def needs(self, capability: Capability, why: str = "") -> None:
        """Leave a check that makes no sense without a capability.

        Raises:
            Skip: The implementation lacks it.
        """
        if not (self.drivers[-1] if self.drivers else self.driver()).can(capability):
            raise Skip(f"{self.implementation.name} has no {capability}" + (why and f": {why}"))

    def has(self, method: str) -> None:
        """Leave a check that is about a method which an implementation may lack.

        Raises:
            Skip: It lacks it.
        """
        if not callable(getattr(self.drivers[-1].manager, method, None)):
            raise Skip(f"{self.implementation.name} has no method {method}")

    def follows(self, *rules: str) -> None:
        """Leave a check that takes more SHOULD rules for granted than the one it is about.

        Raises:
            Skip: The implementation does not claim to follow one of them.
        """
        others = [rule for rule in rules if rule not in self.implementation.follows]
        if others:
            raise Skip(f"{self.implementation.name} does not follow {', '.join(others)}")

    def writes(self, policy: str) -> None:
        """Leave a check that is about one write policy.

        Raises:
            Skip: The implementation does not know it.
        """
        if policy not in self.implementation.write_policies:
            raise Skip(f"{self.implementation.name} has no write policy {policy}")

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
