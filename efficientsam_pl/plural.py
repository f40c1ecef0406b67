"""Counts in sentences: 1 photo, 2 photos."""


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A whole number and its noun, such as `1 mask`, `0 masks` or `12,000 masks`.

    Args:
        count: How many.
        noun: One of them.
        plural: Several of them, where an s at the end does not make it.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
