"""A story in calls of vLLM's ``KVCacheManager``, made as its scheduler makes them."""

from pagedkv.conformance.upstream.body import Body, asserted, quoted
from pagedkv.conformance.upstream.requests import Request, tokens_text
from pagedkv.reference.events import ContextSnapshot


class VllmBody(Body):
    """There is one replica, and a request is known from its first allocation on."""

    system = "vLLM's KVCacheManager"

    def move(self, request: Request, context: ContextSnapshot) -> None:
        """Append what was sampled, and count what was computed."""
        name, tokens = request.variable, request.tokens
        if request.length == 0:
            prompt = tokens_text(tokens[: context.length])
            self.lines.append(f"{name} = make_request({quoted(request.request_id)}, {prompt})")
        elif context.length > request.length:
            new = tokens_text(tokens[request.length : context.length])
            self.lines.append(f"{name}.append_output_token_ids({new})")
        if context.processed != request.processed:
            self.lines.append(f"{name}.num_computed_tokens = {context.processed}")
        request.length, request.position = context.length, context.position

    def claim(self, request: Request, replica: int) -> None:
        """Nothing: vLLM hears of a request when it is scheduled."""

    def alloc(self, request: Request, replica: int, hits: int, message: str = "") -> None:
        """``get_computed_blocks`` and ``allocate_slots``."""
        if message:
            self.lines.append(f"num_cached_tokens = {self._schedule(request)}")
            self.lines += asserted(f"num_cached_tokens == {hits}", message)
        else:
            self.lines.append(f"assert {self._schedule(request)} == {hits}")

    def refused_alloc(self, request: Request, replica: int, message: str = "") -> None:
        """``allocate_slots`` returns ``None``."""
        self.lines += asserted(f"{self._schedule(request)} is None", message)

    def step(self, request: Request) -> None:
        """``cache_blocks``."""
        name = request.variable
        self.lines.append(f"manager.cache_blocks({name}, {name}.num_computed_tokens)")

    def release(self, request: Request) -> None:
        """``free``."""
        if request.length:
            self.lines.append(f"manager.free({request.variable})")

    def reset(self) -> None:
        """``reset_prefix_cache``."""
        self.lines.append("manager.reset_prefix_cache()")

    def check_free(self, replica: int, pages: int, message: str) -> None:
        """``get_num_free_blocks``."""
        self.lines += asserted(f"manager.block_pool.get_num_free_blocks() == {pages}", message)

    def check_pages(self, request: Request, replica: int, pages: int, message: str) -> None:
        """``get_block_ids``."""
        self.lines.append(f"(block_ids,) = manager.get_block_ids({quoted(request.request_id)})")
        self.lines += asserted(f"len(block_ids) == {pages}", message)

    def _schedule(self, request: Request) -> str:
        chunk = f", {request.position}" if request.position < request.length else ""
        return f"schedule(manager, {request.variable}{chunk})"
