"""The calls that a driver has made, as Python that can be pasted and run."""

import copy
from collections.abc import Callable, Sequence

from pagedkv.reference.context import Context, TextContext
from pagedkv.traces.manager_setup import ManagerSetup

PREAMBLE = """\
import numpy as np
from pagedkv.conformance import ManagerSetup
from pagedkv.conformance.call_log import refused
from pagedkv.implementations import resolve_implementation
from pagedkv.reference import ImageMetadata, TextContext, TokenBuffer, TokenHashOverride
"""


def refused(call: Callable[[], object]) -> None:
    """For pasted programmes: make a call that should be refused, and show how it went."""
    try:
        call()
    except Exception as error:
        print(f"refused: {type(error).__name__}: {error}")
    else:
        print("not refused")


class CallLog:
    """Collects lines; :attr:`text` is the whole programme."""

    def __init__(self, impl: str) -> None:
        self.impl = impl
        """What the implementation is known by: ``package.module:factory``."""
        self.lines: list[str] = []
        """The calls so far."""
        self.manager = "manager"
        """The variable of the manager that is called."""
        self._known: dict[str, Context] = {}

    def of_another(self, manager: str) -> "CallLog":
        """The same programme, for calls of another manager in it."""
        other = copy.copy(self)
        other.manager = manager
        return other

    @property
    def text(self) -> str:
        """The programme: imports, the factory, the calls."""
        find = f"make = resolve_implementation({self.impl!r}).make"
        return "\n".join([PREAMBLE + find, "", *self.lines])

    def make(self, setup: ManagerSetup) -> None:
        """A manager is built."""
        given = setup.model_dump(exclude_defaults=True)
        options = ", ".join(f"{name}={value!r}" for name, value in given.items())
        if setup.disk_dir is not None:
            options += ", disk_dir='/tmp/disk'"
        self.lines.append(f"{self.manager} = make(ManagerSetup({options}))")

    def call(self, text: str, *contexts: Context) -> None:
        """One call, and first the contexts that it needs; the manager is called ``manager``."""
        for ctx in contexts:
            self.context(ctx)
        self.lines.append(text.replace("manager.", f"{self.manager}.", 1))

    def result(self, text: str) -> None:
        """What the last call has given."""
        if self.lines:
            self.lines[-1] += f"  # {text}"

    def refused(self, error: str) -> None:
        """The last call has raised an error, or must."""
        if self.lines:
            self.lines[-1] = f"refused(lambda: {self.lines[-1]})  # {error}"

    def context(self, ctx: Context) -> None:
        """A context, once."""
        name = name_of(ctx)
        if self._known.get(name) is ctx or not isinstance(ctx, TextContext):
            return
        self._known[name] = ctx
        tokens = ctx.tokens.all[: ctx.tokens.prompt_length].tolist()
        options = [f"max_length={ctx.max_length}", f"tokens=TokenBuffer({_array(tokens)})"]
        options.append(f"request_id={str(ctx.request_id)!r}")
        for field in (
            *("cache_salt", "adapter", "images", "token_hash_overrides"),
            *("given_digests", "preempted"),
        ):
            value = getattr(ctx, field)
            if value not in (None, [], False):  # an empty salt is one, too
                options.append(f"{field}={value!r}")
        self.lines.append(f"{name} = TextContext({', '.join(options)})")


def _array(tokens: list[int]) -> str:
    if len(tokens) > 2 and tokens == [*range(tokens[0], tokens[0] + len(tokens))]:
        return f"np.arange({tokens[0]}, {tokens[-1] + 1})"
    return f"np.array({tokens})"


def name_of(ctx: Context) -> str:
    """The variable of a context."""
    return "".join(c if c.isalnum() else "_" for c in str(ctx.request_id))


def batches_text(batches: Sequence[Sequence[Context]]) -> str:
    """Batches as Python."""
    return "[" + ", ".join(f"[{', '.join(map(name_of, batch))}]" for batch in batches) + "]"
