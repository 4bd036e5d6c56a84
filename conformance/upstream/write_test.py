"""Writes the story of a divergence as a pytest file that needs nothing but the system itself."""

import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import jinja2

from pagedkv.conformance.upstream.body import WIDTH, Body, quoted
from pagedkv.conformance.upstream.explanation import Explanation, explain
from pagedkv.conformance.upstream.paged_body import MaxBody, PagedBody
from pagedkv.conformance.upstream.story import Story
from pagedkv.conformance.upstream.vllm_body import VllmBody

System = Literal["vllm", "max", "python"]
"""Whose classes a test uses: vLLM's, MAX's, or those of any manager with our interface."""

BODIES: dict[System, type[Body]] = {"vllm": VllmBody, "max": MaxBody, "python": PagedBody}


def write_test(story: Story, system: System, *, implementation: str = "reference") -> str:
    """The text of a pytest file that fails as long as the system does what the story tells.

    Args:
        story: What goes wrong.
        system: Whose classes to use.
        implementation: For ``python``: what the manager is known by, as for ``--impl``.

    Raises:
        NoTestError: The system has no counterpart for what happens in the story.
    """
    explanation = explain(story)
    lines = BODIES[system](story).write(explanation.message)
    setup = story.header.setup
    text = "\n".join(lines)
    given = setup.model_dump(exclude_defaults=True, exclude={"total_num_pages"})
    template = Path(__file__).with_name(f"{system}_test.py.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.from_string(template).render(
        headline=headline(explanation),
        claim=explanation.claim,
        docstring=docstring(explanation, story.header.implementation),
        lines=[f"    {line}" if line else "" for line in lines],
        setup=setup,
        page_size=setup.page_size,
        pages=setup.total_num_pages,
        replicas=setup.replicas,
        caching=setup.enable_prefix_caching,
        raises="pytest." in text,
        refuses="InsufficientBlocksError" in text,
        allocates="alloc(manager" in text,
        contexts="make_context(" in text,
        implementation=quoted(implementation),
        options=[f"{name}={_literal(value)}" for name, value in given.items()],
    )


def headline(explanation: Explanation) -> str:
    """What a test claims, as a sentence."""
    words = explanation.claim.replace("_", " ")
    return f"{words[0].upper()}{words[1:]}."


def docstring(explanation: Explanation, implementation: str) -> str:
    """What goes wrong and why it matters, for within the quotes of a test's docstring."""
    paragraphs = [explanation.wrong, explanation.matters]
    if re.fullmatch(r"[\w.+ -]*\d[\w.+ -]*", implementation):  # it says its version
        paragraphs.append(f"Seen in {implementation}.")
    first, *others = (textwrap.wrap(paragraph, WIDTH - 8) for paragraph in paragraphs)
    return _indented([*first, *(line for other in others for line in ("", *other))])


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"    {line}" if line else "" for line in lines).removeprefix("    ")


def _literal(value: object) -> str:
    return quoted(value) if isinstance(value, str) else repr(value)
