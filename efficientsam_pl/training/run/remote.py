"""A run in a remote store, and the local folder that it is written to first.

The store is authoritative, the folder is a copy: at the start of a run, what differs is downloaded.
The latest checkpoint is downloaded completely; of older ones only the manifest, so that retention
knows of them and can remove them.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from filelock import FileLock

from efficientsam_pl.checkpoints.layout import (
    MANIFEST,
    CheckpointError,
    find_corruption,
    read_manifest,
    write_pointer,
)
from efficientsam_pl.storage.mirror import Mirror, StoredFolder

CHECKPOINTS = "checkpoints"
_PARALLEL_DOWNLOADS = 4

_log = logging.getLogger(__name__)


def scratch_mirror(remote: str, scratch: str | None, node: int) -> Mirror:
    """Create the local copy of a remote folder; nodes may share a disk, so each has its own.

    Args:
        remote: The remote folder.
        scratch: Parent of local copies; None: the system's folder for temporary files.
        node: Rank of this node within the run.
    """
    digest = hashlib.sha256(remote.rstrip("/").encode("utf-8", "surrogateescape")).hexdigest()
    top = Path(scratch or tempfile.gettempdir()) / f"efficientsam-runs-{os.getuid()}"
    local = top / f"{digest[:16]}-node{node}" / PurePosixPath(remote).name
    local.mkdir(parents=True, exist_ok=True)
    return Mirror(local, StoredFolder(remote), MANIFEST)


def download_checkpoints(mirror: Mirror, name: str | None = None) -> Path | None:
    """Synchronise the local checkpoints, `latest` and `best` with the store.

    Every rank of a node may call it; one of them downloads, the others wait.

    Args:
        mirror: The run's.
        name: A checkpoint to download instead of the latest.

    Returns:
        The complete local checkpoint; None if the store has none.

    Raises:
        CheckpointError: The store has checkpoints, but none is valid.
    """
    with FileLock(mirror.local.with_name(f".{mirror.local.name}.lock")):
        names = _sync_manifests(mirror)
        chosen = _first_valid(mirror, [name] if name else names)
        for pointer in ("latest", "best"):
            (mirror.local / pointer).unlink(missing_ok=True)
        if chosen is None and (name or names):
            raise CheckpointError(
                f"{mirror.remote.path} has no valid checkpoint to resume from; run.resume=none "
                "starts from scratch"
            )
        if chosen is not None:
            write_pointer(mirror.local / "latest", chosen)
        best = (mirror.remote.read("best") or b"").decode().strip()
        if best in names:
            write_pointer(mirror.local / "best", mirror.local / best)
        return chosen


def download_checkpoint(mirror: Mirror) -> Path:
    """Download a single checkpoint, whose mirror is the checkpoint's folder, not a run's.

    Raises:
        CheckpointError: The checkpoint is missing or corrupt.
    """
    with FileLock(mirror.local.with_name(f".{mirror.local.name}.lock")):
        manifest = mirror.remote.read(MANIFEST)
        if manifest is None or not _download(mirror, mirror.local, "", manifest):
            raise CheckpointError(f"{mirror.remote.path} is not a valid checkpoint to resume from")
        return mirror.local


def download_records(mirror: Mirror) -> None:
    """Replace the local log and trace by the store's; on rank 0, which alone writes them."""
    shutil.rmtree(mirror.local / "log", ignore_errors=True)
    names = ["consumed.jsonl", "data_report.json"]
    for name in names:
        (mirror.local / name).unlink(missing_ok=True)
    stored = mirror.remote.names()
    for name in [*mirror.remote.files("log"), *(name for name in names if name in stored)]:
        mirror.fetch(name)


def _sync_manifests(mirror: Mirror) -> list[str]:
    """Download all manifests; names of the store's complete checkpoints, latest first.

    Local checkpoints that differ from the store's are removed.
    """
    manifests = {
        PurePosixPath(file).parent.as_posix(): mirror.remote.read(file)
        for file in mirror.remote.files(CHECKPOINTS)
        if file.count("/") == 2 and file.endswith(f"/{MANIFEST}")
    }
    for folder in (mirror.local / CHECKPOINTS).glob("*"):
        stored, local = manifests.get(f"{CHECKPOINTS}/{folder.name}"), folder / MANIFEST
        if stored is None or not local.is_file() or local.read_bytes() != stored:
            shutil.rmtree(folder)
    written = {}
    for name, manifest in manifests.items():
        try:
            written[name] = float(json.loads(manifest or b"")["written"])
        except (ValueError, KeyError, TypeError):
            continue  # uploaded only in part
        (mirror.local / name).mkdir(parents=True, exist_ok=True)
        (mirror.local / name / MANIFEST).write_bytes(manifest or b"")
    return sorted(written, key=written.__getitem__, reverse=True)


def _first_valid(mirror: Mirror, names: list[str]) -> Path | None:
    for name in names:
        folder = mirror.local / name
        manifest = mirror.remote.read(f"{name}/{MANIFEST}")
        if manifest is not None and _download(mirror, folder, f"{name}/", manifest):
            return folder
        _log.error("THE CHECKPOINT %s IS CORRUPT: it is skipped", mirror.remote.at(name))
        shutil.rmtree(folder, ignore_errors=True)
    return None


def _download(mirror: Mirror, folder: Path, prefix: str, manifest: bytes) -> bool:
    """Download a checkpoint's missing files; True if it is complete and valid."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_bytes(manifest)
    try:
        records = read_manifest(folder).files
        missing = [
            f"{prefix}{name}"
            for name, record in records.items()
            if not (folder / name).is_file() or (folder / name).stat().st_size != record.bytes
        ]
        if not missing:
            return True  # checksums are verified when it is read
        with ThreadPoolExecutor(_PARALLEL_DOWNLOADS, "download") as pool:
            list(pool.map(mirror.fetch, missing))
        corruption = find_corruption(folder)
    except (CheckpointError, FileNotFoundError) as error:
        corruption = str(error)
    if corruption is not None:
        _log.error("%s: %s", mirror.remote.path, corruption)
    return corruption is None
