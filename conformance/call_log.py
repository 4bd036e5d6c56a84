"""The calls that a driver has made, as Python that can be pasted and run."""

from collections.abc import Sequence

from pagedkv.reference.context import Context, TextContext
from pagedkv.traces.manager_setup import ManagerSetup

PREAMBLE = """\
import numpy as np
from pagedkv.conformance import ManagerSetup
from pagedkv.reference import ImageMetadata, TextContext, TokenBuffer, TokenHashOverride
"""


class CallLog:
    """Collects lines; :attr:`text` is the whole programme."""

    def __init__(self, impl: str) -> None:
        self.impl = impl
        """What the factory is known by: ``package.module:factory``."""
        self.lines: list[str] = []
        """The calls so far."""
        self._known: set[str] = set()

    @property
    def text(self) -> str:
        """The programme: imports, the factory, the calls."""
        module, _, factory = self.impl.partition(":")
        source = f"from {module} import {factory} as make" if factory else f"# make: {self.impl}"
        return "\n".join([PREAMBLE + source, "", *self.lines])

    def make(self, setup: ManagerSetup) -> None:
        """A manager is built."""
        given = setup.model_dump(exclude_defaults=True)
        options = ", ".join(f"{name}={value!r}" for name, value in given.items())
        if setup.disk_dir is not None:
            options += ", disk_dir='/tmp/disk'"
        build = "make.make" if self.impl.endswith(":implementation") else "make"
        self.lines.append(f"manager = {build}(ManagerSetup({options}))")

    def call(self, text: str, *contexts: Context) -> None:
        """One call, and first the contexts that it needs."""
        for ctx in contexts:
            self.context(ctx)
        self.lines.append(text)

    def result(self, text: str) -> None:
        """What the last call has given."""
        if self.lines:
            self.lines[-1] += f"  # {text}"

    def context(self, ctx: Context) -> None:
        """A context, once."""
        name = name_of(ctx)
        if name in self._known or not isinstance(ctx, TextContext):
            return
        self._known.add(name)
        tokens = ctx.tokens.all[: ctx.tokens.prompt_length].tolist()
        options = [f"max_length={ctx.max_length}", f"tokens=TokenBuffer(np.array({tokens}))"]
        options.append(f"request_id={str(ctx.request_id)!r}")
        for field in ("cache_salt", "adapter", "images", "token_hash_overrides", "preempted"):
            value = getattr(ctx, field)
            if value:
                options.append(f"{field}={value!r}")
        self.lines.append(f"{name} = TextContext({', '.join(options)})")


def name_of(ctx: Context) -> str:
    """The variable of a context."""
    return "".join(c if c.isalnum() else "_" for c in str(ctx.request_id))


def batches_text(batches: Sequence[Sequence[Context]]) -> str:
    """Batches as Python."""
    return "[" + ", ".join(f"[{', '.join(map(name_of, batch))}]" for batch in batches) + "]"
