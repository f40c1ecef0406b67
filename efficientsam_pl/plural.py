"""Counts in sentences: 1 photo, 2 photos."""


def noun(count: int, one: str) -> str:
    """A noun as it stands behind a count: `mask` behind 1, `masks` behind any other."""
    return one if count == 1 else f"{one}s"


def counted(count: int, one: str) -> str:
    """A count and its noun, such as `1 mask` or `0 masks`."""
    return f"{count} {noun(count, one)}"
