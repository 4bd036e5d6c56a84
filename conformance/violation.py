"""How the suite says that a manager has broken a rule."""

from typing import Any


class Violation(AssertionError):
    """A manager did what a rule forbids, or did not do what it demands."""

    def __init__(self, rule: str, what: str, *, expected: object = None, seen: object = None):
        self.rule = rule
        """The rule of SPEC.md."""
        self.what = what
        """What happened, for people."""
        self.expected = expected
        """What should have been; ``None`` if ``what`` says it all."""
        self.seen = seen
        """What was."""
        told = "" if expected is None else f": {seen}, but should be {expected}"
        super().__init__(f"{rule}: {what}{told}")


# Any: values of whatever type, which are compared and shown.
def expect(rule: str, seen: Any, expected: Any, what: str) -> None:
    """Demand that ``seen`` equals ``expected``.

    Raises:
        Violation: It does not.
    """
    if seen != expected:
        raise Violation(rule, what, expected=repr(expected), seen=repr(seen))


def demand(rule: str, holds: bool, what: str) -> None:
    """Demand that something holds; ``what`` says what is wrong if it does not.

    Raises:
        Violation: It does not.
    """
    if not holds:
        raise Violation(rule, what)
