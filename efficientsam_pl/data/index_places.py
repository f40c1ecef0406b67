"""Places of the indexes and manifests of shards: with the shards, or in another folder."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from efficientsam_pl.data.manifest_file import MANIFEST, is_foreign
from efficientsam_pl.data.shard_listing import shard_name
from efficientsam_pl.storage.files import full_path, is_local, local_path


def index_beside(path: str) -> str:
    """Path of a shard's index in the shard's folder."""
    return f"{shard_name(path)}.index.json"


def index_homes(path: str, index_dir: str | None) -> list[str | None]:
    """List the folders where an index may be, the likeliest first; None: its shard's folder."""
    return [index_dir, None] if index_dir is not None else [None, _cache_folder()]


def written_home(path: str, index_dir: str | None) -> str | None:
    """Return the folder where a shard's index is written; None: the shard's."""
    if index_dir is not None:
        return index_dir
    beside = path.startswith("memory://") or (
        is_local(path) and os.access(local_path(path).parent, os.W_OK)
    )
    return None if beside and not is_foreign(manifest_path(folder_of(path))) else _cache_folder()


def _cache_folder() -> str:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return f"{root}/efficientsam_pl/index"


def index_path(path: str, home: str | None) -> str:
    """Path of a shard's index in the folder `home`; None: the shard's."""
    if home is None:
        return index_beside(path)
    return f"{full_path(home)}/{Path(path).name}-{_short(folder_of(path))}.index.json"


def manifest_path(folder: str, home: str | None = None) -> str:
    """Path of the manifest of a folder of shards in the folder `home`; None: the same."""
    if home is None:
        return f"{folder}/{MANIFEST}"
    return f"{full_path(home)}/{_short(folder)}-{MANIFEST}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def folder_of(path: str) -> str:
    """Return the folder of a file, as `full_path` writes it."""
    folder, slash, _ = path.rpartition("/")
    return folder if "://" in path else str(local_path(folder or slash or "."))


def folders_of(paths: Iterable[str]) -> list[str]:
    """Return the folders of files, each once, by name."""
    heads = {path.rpartition("/")[0] for path in paths}
    return sorted({folder_of(f"{head}/x") for head in heads})
