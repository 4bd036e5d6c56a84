"""Managers that share a store, whatever the interleaving: the run of each can be followed alone."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pagedkv.conformance.recordings.recording import SMALL
from pagedkv.conformance.recordings.stage import Stage
from pagedkv.conformance.validation import Divergence, validate
from pagedkv.reference.errors import InsufficientBlocksError
from pagedkv.reference.events import AllocPlanned, StoreAnswered
from pagedkv.reference.media import Media
from pagedkv.specification import build_reference, reference_specification
from pagedkv.traces.manager_setup import ManagerSetup

ENDPOINTS = ("near", "far")


class Instance:
    """One manager and its requests."""

    def __init__(self, media: Media, endpoint: str, host_pages: int | None) -> None:
        options = {"total_num_pages": 6, "store": True, "store_endpoint": endpoint}
        options |= {"host_pages": host_pages, "media": media, "model_fingerprint": "weights"}
        self.stage = Stage(build_reference, ManagerSetup(**SMALL | options))
        self.count = 0

    def act(self, action: str, number: int) -> None:
        stage = self.stage
        transfers = stage.in_flight()
        match action:
            case "serve":
                self.serve(number)
            case "land" if transfers:
                stage.manager.land(transfers[number % len(transfers)])
            case "fail" if transfers:
                reason = ("corrupt", "timeout", "missing")[number % 3]
                stage.manager.fail(transfers[number % len(transfers)], reason)  # type: ignore[arg-type]
            case "reset" if number == 0:
                stage.manager.reset_prefix_cache()

    def serve(self, number: int) -> None:
        """A request that may ask the other store, too; what it offloads is left to land."""
        pages, start = divmod(number, 3)
        elsewhere = {"endpoints": list(ENDPOINTS)} if number % 2 else None
        self.count += 1
        ctx = self.stage.claim(
            f"{self.count}",
            self.stage.prompt(pages % 3 + 1, 100 * start),
            external_block_metadata=elsewhere,
        )
        try:
            self.stage.alloc(ctx)
        except InsufficientBlocksError:
            pass
        else:
            self.stage.forward(ctx)
        self.stage.release(ctx)


acts = st.tuples(
    st.integers(0, 2),
    st.sampled_from(["serve", "serve", "land", "land", "fail", "reset"]),
    st.integers(0, 8),
)


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from([None, 2]), min_size=3, max_size=3),
    st.lists(acts, min_size=5, max_size=40),
)
def test_the_run_of_each_manager_explains_itself(
    host_pages: list[int | None], run: list[tuple[int, str, int]]
) -> None:
    media = Media()
    instances = [Instance(media, ENDPOINTS[n == 2], pages) for n, pages in enumerate(host_pages)]
    for who, action, number in run:
        instances[who].act(action, number)
    for instance in instances:
        setup, events = instance.stage.setup.run_setup(), instance.stage.events
        assert validate(setup, events, reference_specification) == len(events)


def the_second_of_two() -> Instance:
    """It hits what the first has put."""
    media = Media()
    instances = [Instance(media, "near", None) for _ in range(2)]
    for instance in instances:
        instance.serve(2)
        instance.stage.land()
    return instances[1]


def test_a_hit_without_an_answer_diverges() -> None:
    instance = the_second_of_two()
    events = instance.stage.events
    answer = next(event for event in events if isinstance(event, StoreAnswered))
    setup = instance.stage.setup.run_setup()
    silent = [event for event in events if event is not answer]
    divergence = validate(setup, silent, reference_specification)
    assert isinstance(divergence, Divergence) and isinstance(divergence.seen, AllocPlanned)
    unused = [StoreAnswered((), answer.found) if e is answer else e for e in events]
    assert isinstance(validate(setup, unused, reference_specification), Divergence)


def test_a_manager_without_a_store_cannot_have_an_answer() -> None:
    setup = ManagerSetup(**SMALL).run_setup()
    divergence = validate(setup, [StoreAnswered((b"12345678",))], reference_specification)
    assert isinstance(divergence, Divergence)
    assert "the manager has none" in divergence.reason


def test_known_answers_may_be_repeated() -> None:
    """A manager need not remember what it was told."""
    instance = the_second_of_two()
    events = instance.stage.events
    place = next(n for n, event in enumerate(events) if isinstance(event, StoreAnswered))
    repeated = [*events[: place + 1], events[place], *events[place + 1 :], events[place]]
    setup = instance.stage.setup.run_setup()
    assert validate(setup, repeated, reference_specification) == len(repeated)
