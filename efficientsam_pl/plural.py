"""Counts in sentences: 1 image, 2 images."""


def noun(count: int, singular: str) -> str:
    """Inflect a noun for a count: `mask` for 1, `masks` for any other; `box`, `boxes`."""
    plural = f"{singular}es" if singular.endswith("x") else f"{singular}s"
    return singular if count == 1 else plural


def counted(count: int, singular: str) -> str:
    """Format a count with its noun, such as `1 mask` or `0 masks`."""
    return f"{count} {noun(count, singular)}"
