"""List the shards that a pattern names: of what matches, the tars alone."""

import logging
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import PurePosixPath

from efficientsam_pl.plural import counted
from efficientsam_pl.storage.files import (
    StoredFile,
    full_path,
    has_marks,
    list_patterns,
    patterns,
    same_file,
)
from efficientsam_pl.storage.filesystems import plain_url
from efficientsam_pl.storage.local_listing import matcher

SUFFIX = ".tar"
_BESIDE_SHARDS = re.compile(  # what this program and checksum tools write into a folder of shards
    r"\..*|.*\.index\.json|manifest\.json|pack\.json|pack-summary.*\.json|.*\.(md5|sha256|txt|md)",
)

_log = logging.getLogger(__name__)


def list_shards(pattern: str, sizes: bool = True) -> dict[str, list[StoredFile]]:
    """List the shards of each of several patterns; see `storage.files.patterns`.

    A file that is named without stars is taken as it is. Of the files that stars match, those
    whose names do not end in `.tar` are left out; a line in the log counts them, unless they are
    what belongs beside shards.

    Args:
        pattern: The patterns.
        sizes: Whether sizes are needed, which may take a call for each file.
    """
    return {
        part: _tars(part, files) if has_marks(part) else files
        for part, files in list_patterns(pattern, sizes).items()
    }


def list_tars(pattern: str) -> list[StoredFile]:
    """List the shards of several patterns together, each once, by name."""
    files = {file.path: file for listed in list_shards(pattern).values() for file in listed}
    return [files[path] for path in sorted(files)]


def shard_name(path: str) -> str:
    """Return the path that a shard is known by: without the query of its web address.

    A query may hold a signature, which changes while the shard stays. Where the path does not name
    a tar, the query does, and belongs to the name.
    """
    plain = plain_url(path)
    return plain if plain.lower().endswith(SUFFIX) else path


@lru_cache(maxsize=64)
def shard_matcher(pattern: str) -> Callable[[str], bool]:
    """Return a test whether a full path is a shard that one of several patterns names."""
    parts = patterns(pattern)
    names = {shard_name(full_path(part)) for part in parts if not has_marks(part)}
    tests = [matcher(full_path(part)) for part in parts if has_marks(part)]
    return lambda path: path in names or (_is_tar(path) and any(test(path) for test in tests))


def _is_tar(path: str) -> bool:
    return plain_url(path).lower().endswith(SUFFIX)


def _tars(part: str, files: list[StoredFile]) -> list[StoredFile]:
    tars = [file for file in files if _is_tar(file.path)]
    taken = {file.path for file in tars}
    left_out = [file.path for file in files if file.path not in taken]
    foreign = [path for path in left_out if not _BESIDE_SHARDS.fullmatch(PurePosixPath(path).name)]
    if foreign:
        _log.warning(
            "%s: %s no tar and left out, first %s",
            part,
            f"{counted(len(foreign), 'matching file')} {'is' if len(foreign) == 1 else 'are'}",
            PurePosixPath(foreign[0]).name,
        )
    return tars


def lost_shards(
    unlisted: Sequence[str], listed: set[str], pattern: str, without: str | None
) -> list[str]:
    """Return the shards of the manifests that match but are not there, each once.

    Args:
        unlisted: Shards of the manifests that were not listed by this name.
        listed: Names of the listed files, by `same_file`.
        pattern: Pattern of the shards.
        without: Pattern of shards that are left out.
    """
    matches, left_out = shard_matcher(pattern), shard_matcher(without or "")
    lost = {same_file(path): path for path in unlisted if matches(path) and not left_out(path)}
    return [path for name, path in lost.items() if name not in listed]
