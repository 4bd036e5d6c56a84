"""The kinds of traffic that can be generated, as numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    """What the sessions of one kind of traffic look like.

    A prompt is a system prompt, then documents, then the turns of the session so far, then what
    is new in this turn. The first two are drawn from pools that sessions share, the more popular
    the lower their number (Zipf).
    """

    name: str
    """What ``--scenario`` calls it, and the type of its requests."""
    turns: float
    """Mean requests per session."""
    system_prompts: int
    """Number of different system prompts."""
    system_tokens: int
    """Mean length of a system prompt, tool definitions included."""
    documents: int
    """Number of different documents or passages; 0 for none."""
    documents_per_session: int
    """How many of them stand in the prompts of a session."""
    document_tokens: int
    """Mean length of a document or passage."""
    input_tokens: int
    """Mean length of what a turn adds: a question, or the result of a tool."""
    output_tokens: int
    """Mean length of an answer."""
    think_s: float
    """Mean pause between an answer and the next turn, in seconds."""
    share: float
    """Share of the sessions in the mix, relative to the other scenarios."""


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        # People talk; each turn repeats the conversation.
        Scenario("chat", 3, 8, 300, 0, 0, 0, 150, 300, 60.0, share=40),
        # A few applications with one long instruction each, short independent questions.
        Scenario("system-prompt", 1, 12, 2000, 0, 0, 0, 400, 150, 0.0, share=15),
        # Programs call tools in a loop and append every result.
        Scenario("agents", 8, 4, 3000, 0, 0, 0, 600, 150, 5.0, share=5),
        # Retrieved passages stand before the question, the most relevant first.
        Scenario("rag", 1, 1, 300, 2000, 5, 500, 60, 200, 0.0, share=30),
        # A few questions about one long text.
        Scenario("documents", 2, 1, 200, 100, 1, 12000, 60, 250, 120.0, share=10),
    )
}
"""Every scenario by name."""

MIX = "mix"
"""Sessions of all scenarios, by their shares."""
