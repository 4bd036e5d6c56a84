"""The colours of charts and pages, by day and by night."""

LIGHT = {
    "ink": "#1b1f24",
    "muted": "#5c6570",
    "grid": "#dde1e6",
    "paper": "#ffffff",
    "series-0": "#0b62a8",
    "series-1": "#b04a00",
    "series-2": "#00755c",
    "series-3": "#8f3a84",
    "series-4": "#6e6300",
    "series-5": "#4a4fc4",
}
"""Text, yardsticks, grid lines, background, and one colour per implementation; each colour stands
here once, and all but grid and background are dark enough for text."""

DARK = {
    "ink": "#e6e9ed",
    "muted": "#a3acb8",
    "grid": "#343a42",
    "paper": "#14171b",
    "series-0": "#6db8ff",
    "series-1": "#ff9d5c",
    "series-2": "#4fd0ae",
    "series-3": "#ec9de0",
    "series-4": "#d6c94a",
    "series-5": "#a9acff",
}
"""The same for dark screens."""


def series(number: int) -> str:
    """The name of an implementation's colour; after the sixth they come again."""
    return f"series-{number % 6}"


def css_variables(colours: dict[str, str]) -> str:
    """The colours as declarations of a style sheet: ``--ink: #...``."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
