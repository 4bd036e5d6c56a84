"""A story in calls of a ``PagedKVCacheManager``: MAX's, ours, or any with our interface."""

from pagedkv.conformance.upstream.body import COMMON_FIELDS, Body, asserted, quoted
from pagedkv.conformance.upstream.requests import Request, tokens_text
from pagedkv.reference.events import ContextSnapshot


class PagedBody(Body):
    """Contexts go along with the forwards that the story implies."""

    system = "a manager with our interface"
    fields = (*COMMON_FIELDS, "replicas", "speculative_method", "num_draft_tokens")

    def move(self, request: Request, context: ContextSnapshot) -> None:
        """Let forwards run until the window is where it should be."""
        if request.length == 0:
            self._make(request, context)
        was = request.length, request.processed, request.position
        sampled: list[int] = []
        while request.processed < context.processed:
            if request.position < request.length:  # a chunk: the token that it samples is dropped
                sampled.append(0)
                request.processed, request.position = request.position, request.length
            elif request.length < len(request.tokens):
                sampled.append(request.tokens[request.length])
                request.processed = request.length
                request.length = request.position = request.length + 1
            else:
                break
        reached = (request.length, request.processed) == (context.length, context.processed)
        if not reached or context.position > request.position:
            raise self.no_counterpart(
                f"no forward moves {request.request_id!r} from length, start and end {was} to "
                f"{(context.length, context.processed, context.position)}"
            )
        name = request.variable
        if len(sampled) == 1:
            self.lines.append(f"{name}.update({sampled[0]})")
        elif sampled:
            self.lines.append(f"for token in {tokens_text(sampled)}:")
            self.lines.append(f"    {name}.update(token)")
        if context.position < request.position:
            self.lines.append(f"{name}.tokens.chunk({context.position - context.processed})")

    def claim(self, request: Request, replica: int) -> None:
        """``claim``."""
        self.lines.append(f"manager.claim({self._id(request)}, {replica})")
        request.replica = replica

    def alloc(self, request: Request, replica: int, hits: int, message: str = "") -> None:
        """``alloc``."""
        call = f"alloc(manager, {request.variable}{self._place(replica)})"
        if message:
            self.lines.append(f"num_cached_tokens = {call}")
            self.lines += asserted(f"num_cached_tokens == {hits}", message)
        else:
            self.lines.append(f"assert {call} == {hits}")

    def refused_alloc(self, request: Request, replica: int, message: str = "") -> None:
        """``alloc``, which raises."""
        self.lines.append("with pytest.raises(InsufficientBlocksError):")
        self.lines.append(f"    manager.alloc({request.variable}, {replica})")

    def step(self, request: Request) -> None:
        """``step``, with empty batches for the other replicas."""
        batches = ["[]"] * self.story.header.setup.replicas
        batches[request.replica] = f"[{request.variable}]"
        self.lines.append(f"manager.step([{', '.join(batches)}])")

    def release(self, request: Request) -> None:
        """``release``."""
        self.lines.append(f"manager.release({self._id(request)}, {request.replica})")

    def reset(self) -> None:
        """``reset_prefix_cache``."""
        self.lines.append("manager.reset_prefix_cache()")

    def check_free(self, replica: int, pages: int, message: str) -> None:
        """``num_free_blocks``."""
        self.lines += asserted(f"manager.num_free_blocks({replica}) == {pages}", message)

    def check_pages(self, request: Request, replica: int, pages: int, message: str) -> None:
        """``get_req_blocks``."""
        self.lines.append(f"blocks = manager.get_req_blocks({self._id(request)}, {replica})")
        self.lines += asserted(f"len(blocks) == {pages}", message)

    def accepted_claim(self, request: Request, replica: int) -> None:
        """``claim``, which raises."""
        self.lines.append("with pytest.raises(ValueError):")
        self.lines.append(f"    manager.claim({self._id(request)}, {replica})")

    def accepted_alloc(self, request: Request, replica: int) -> None:
        """``alloc``, which raises and takes nothing."""
        self.lines.append("with pytest.raises((KeyError, ValueError)):")
        self.lines.append(f"    manager.alloc({request.variable}, {replica})")

    def _make(self, request: Request, context: ContextSnapshot) -> None:
        prompt = tokens_text(request.tokens[: context.length])
        self.lines.append(
            f"{request.variable} = make_context({quoted(request.request_id)}, {prompt})"
        )
        request.length = request.position = context.length

    def _id(self, request: Request) -> str:
        return quoted(request.request_id)

    def _place(self, replica: int) -> str:
        return "" if self.story.header.setup.replicas == 1 else f", {replica}"


class MaxBody(PagedBody):
    """MAX wraps the names of requests."""

    system = "MAX's PagedKVCacheManager"
    hash_algorithms = ("sha256", "sha256_64")

    def _id(self, request: Request) -> str:
        return f"RequestID({quoted(request.request_id)})"
