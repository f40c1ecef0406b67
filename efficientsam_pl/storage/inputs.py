"""Check, before a command begins, that what it reads is there. Imports no torch."""

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import is_local, list_files, patterns


def check_matches(pattern: str, none: str = "no shard") -> None:
    """Refuse a pattern that no local file matches.

    Whether a file in a store does is seen when it is read; so is a shard that is gone from a set.

    Args:
        pattern: Several may stand beside each other, with commas between them.
        none: The beginning of the message.

    Raises:
        UserError: No file matches.
    """
    if all(map(is_local, patterns(pattern))) and not list_files(pattern, sizes=False):
        raise UserError(f"{none} matches {pattern!r}")
