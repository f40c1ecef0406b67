"""Keys of samples from the names of their files.

A key is the file's name without its folder and last suffix, with `_` for every dot, since readers
of shards cut a member's name at its first dot. Where two files have the same name, all keys begin
with the folder; a key that is still taken gets a number.
"""

from collections.abc import Sequence

from efficientsam_pl.data.images.files import printable


def sample_key(name: str) -> str:
    """Return the key for a name that is already without its suffix."""
    return printable(name).replace("/", "_").replace(".", "_")


def file_keys(files: Sequence[tuple[str, str, str]]) -> tuple[list[str], list[str]]:
    """Return the keys of files, and a description of each one that got a number.

    Args:
        files: Folder ("": none), name without suffix, and name for the description.
    """
    clash = len({stem for _, stem, _ in files}) < len(files)
    keys = [
        sample_key(f"{folder}_{stem}" if clash and folder else stem) for folder, stem, _ in files
    ]
    unique = unique_keys(keys)
    renamed = [
        f"{printable(name)} -> {new}"
        for (_, _, name), key, new in zip(files, keys, unique, strict=True)
        if new != key
    ]
    return unique, renamed


def unique_keys(keys: Sequence[str]) -> list[str]:
    """Append a number, from 2 on, to all but the first of equal keys."""
    taken, used = set(keys), set[str]()
    numbers: dict[str, int] = {}
    unique = []
    for key in keys:
        name = key
        if key in used:
            number = numbers.get(key, 2)
            while f"{key}_{number}" in taken:
                number += 1
            numbers[key] = number + 1
            name = f"{key}_{number}"
            taken.add(name)
        used.add(name)
        unique.append(name)
    return unique
