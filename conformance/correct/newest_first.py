"""A manager that keeps books and no memory: a radix tree, and the newest page goes first.

It has one device and nothing below. Pages lie on a stack, so the one that was let go last is taken
first, whether its content is cached or not, and fresh pages are taken from the highest id down. It
never swaps a page: equal content is found in all the pages that hold it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from pagedkv.conformance.correct.desk.front_desk import FrontDesk
from pagedkv.conformance.correct.desk.plan import Found
from pagedkv.conformance.correct.desk.requests import Request
from pagedkv.conformance.implementation import Implementation
from pagedkv.reference.context import Context
from pagedkv.traces.manager_setup import ManagerFactory, ManagerSetup


@dataclass(eq=False)
class Node:
    """One block in the tree of all prefixes."""

    children: "dict[bytes, Node]" = field(default_factory=dict)
    """The blocks that were seen after it, by digest."""
    pages: list[int] = field(default_factory=list)
    """Every page that holds it; none once all were evicted, while some child is cached."""


class NewestFirstManager(FrontDesk[Found]):
    """A synchronous manager of one device."""

    def __init__(self, setup: ManagerSetup) -> None:
        if setup.replicas > 1 or setup.host_pages or setup.store:
            raise ValueError(
                f"{setup} asks for more than one device; leave out replicas, host and store"
            )
        super().__init__(setup)
        self.root = Node()
        self.path: dict[int, list[bytes]] = {}
        """Where in the tree the content of a page stands."""
        self.holders: Counter[int] = Counter()
        self.stack = dict.fromkeys(range(setup.total_num_pages))
        """Pages that nobody holds, cached or not; the last one is taken first."""

    # Pages

    def num_free_blocks(self, replica_idx: int = 0) -> int:
        """Pages that nobody holds."""
        self.requests.check_replica(replica_idx)
        return len(self.stack)

    def _is_idle(self, replica: int, page: int) -> bool:
        return page in self.stack

    def _take(self) -> int:
        page, _ = self.stack.popitem()
        if page in self.path:
            self._evict(page)
        self._hold(page)
        return page

    def _hold(self, page: int) -> None:
        self.stack.pop(page, None)
        self.holders[page] += 1

    def _put_back(self, page: int) -> None:
        assert self.holders[page] > 0, f"page {page} is given back, and nobody holds it"
        self.holders[page] -= 1
        if not self.holders[page]:
            self.stack[page] = None

    def _evict(self, page: int) -> None:
        path = self.path.pop(page)
        nodes = list(self._nodes(path))
        nodes[-1].pages.remove(page)
        self.copies = self.copies.plus(device_blocks_evicted=1)
        steps = zip(path, [self.root, *nodes[:-1]], nodes, strict=True)
        for digest, parent, node in reversed(list(steps)):
            if node.pages or node.children:
                break
            del parent.children[digest]

    # The tree

    def _nodes(self, path: Sequence[bytes]) -> Iterator[Node]:
        """The nodes along a path, as far as there are any."""
        node: Node | None = self.root
        for digest in path:
            node = node.children.get(digest) if node else None
            if node is None:
                return
            yield node

    def _find(self, request: Request, chain: Sequence[bytes], start: int) -> Iterator[Found]:
        for number, node in enumerate(self._nodes(chain)):
            if number >= start:
                if not node.pages:
                    return
                yield Found("device", node.pages[-1])

    def _commit(self, request: Request, chain: list[bytes]) -> None:
        node = self.root
        for number, (digest, page) in enumerate(zip(chain, request.pages, strict=False), 1):
            node = node.children.setdefault(digest, Node())
            if page not in self.path:
                self.path[page] = chain[:number]
                node.pages.append(page)

    def reset_prefix_cache(self) -> None:
        """Forget the tree; requests that hold pages keep them, and never share them again."""
        self.requests.check_open()
        self.root, self.path = Node(), {}
        for request in self.requests:
            request.outdated |= bool(request.pages)

    # Requests

    def alloc(self, data: Context, replica_idx: int) -> None:
        """Give a claimed request the pages of its next forward, its cached prefix among them."""
        request = self.requests.find(data.request_id, replica_idx)
        plan = self._plan(data, request)
        if plan is None:
            self._admit(data, request, None, request.pages)
            return
        self._check_room(plan, request)
        for page in plan.hit_pages:
            self._hold(page)
        self._admit(data, request, plan, plan.table([self._take() for _ in range(plan.to_take)]))
        for page in plan.surplus:
            self._put_back(page)

    def _let_go(self, request: Request) -> None:
        for page in reversed(request.pages):
            self._put_back(page)

    @contextmanager
    def reserve(self, replica_batches: Sequence[Sequence[Context]]) -> Iterator[None]:
        """Claim and allocate contexts, and release them at the end of the scope."""
        with self._claimed(replica_batches) as contexts:
            with self._all_or_none(contexts):
                for ctx, replica in contexts:
                    self.alloc(ctx, replica)
            yield

    def poll_transfers(self) -> None:
        """There are none."""
        self.requests.check_open()

    def pending_transfers_exist(self, replica_idx: int = 0) -> bool:
        """There are none."""
        self.requests.check_replica(replica_idx)
        return False

    def shutdown(self) -> None:
        """Refuse every further call."""
        self.requests.closed = True


implementation = Implementation(
    name="newest first",
    make=cast("ManagerFactory", NewestFirstManager),  # all but get_device_buffer
    version="1",
    capabilities=frozenset(
        {
            *("device", "prefix", "inputs", "probes", "metrics", "reset", "dummy", "reserve"),
            *("mla", "fp8", "multi", "speculative", "shutdown"),
        }
    ),
    follows=frozenset({"REL-2"}),
)
