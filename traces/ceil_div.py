"""How many pages or blocks a number of tokens fills, the last one perhaps partly."""


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up, without going through floats."""
    return -(-a // b)
