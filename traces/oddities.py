"""What is odd about a trace without making it unreadable: each oddity once, with a count."""

from dataclasses import dataclass, field


@dataclass
class Oddities:
    """The oddities seen in one pass over a trace."""

    first_line: dict[str, int] = field(default_factory=dict)
    """Line at which each oddity was seen first."""
    count: dict[str, int] = field(default_factory=dict)
    """Number of lines that had it."""

    def add(self, oddity: str, line: int) -> None:
        """Note an oddity of one line."""
        self.first_line.setdefault(oddity, line)
        self.count[oddity] = self.count.get(oddity, 0) + 1

    def texts(self) -> list[str]:
        """One sentence per oddity, in the order of their appearance."""
        return [
            f"{oddity} ({self.count[oddity]} lines, the first is line {line})"
            for oddity, line in self.first_line.items()
        ]
