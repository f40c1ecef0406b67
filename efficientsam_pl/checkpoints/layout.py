"""The checkpoint folder: complete once its manifest, the last file written, exists.

    step-00000010/
        run.pt          plain values: counters, schedule, data position, seeds, config, versions
        state.pt        tensors in one file (one process, DDP), or
        state/          tensors in torch.distributed.checkpoint's shards (FSDP2)
        complete.json   version, step, size and checksum of every other file; written last

The folder is filled under a temporary name and renamed once its manifest is synced, so a killed
writer never leaves a folder that a reader could mistake for a complete checkpoint.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.atomic import sync_folder
from efficientsam_pl.storage.files import atomic_write

VERSION = 3
MANIFEST, PLAIN, SHARDS, VALUES = "complete.json", "state.pt", "state", "run.pt"
_checksum = partial(hashlib.blake2b, digest_size=16)

Kind = Literal["plain", "sharded"]


class CheckpointError(UserError):
    """Not a checkpoint of this program, or a corrupt one; the message is one line."""


@dataclass(frozen=True)
class FileRecord:
    """Size and checksum of a file when the checkpoint was written."""

    bytes: int
    blake2b: str


@dataclass(frozen=True)
class Manifest:
    """Contents of `complete.json`."""

    kind: Kind
    step: int
    values: str  # name of the file of plain values
    files: Mapping[str, FileRecord]
    written: float  # seconds since 1970
    version: int = VERSION


def step_folder(checkpoints: Path, step: int) -> Path:
    """Path of the checkpoint of a step."""
    return checkpoints / f"step-{step:08d}"


def partial_path(folder: Path) -> Path:
    """Temporary path of a checkpoint that is still being written."""
    return folder.with_name(f".{folder.name}.part")


def file_records(files: Iterable[Path], root: Path) -> dict[str, FileRecord]:
    """Sizes and checksums of files, by their names relative to the checkpoint's folder."""
    records = {}
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, _checksum)
        records[path.relative_to(root).as_posix()] = FileRecord(
            path.stat().st_size, digest.hexdigest()
        )
    return records


def write_manifest(
    folder: Path, kind: Kind, step: int, values: str, files: Mapping[str, FileRecord]
) -> None:
    """Write the manifest, the last file of a folder whose other files are already synced."""
    manifest = Manifest(kind, step, values, files, time.time())
    with atomic_write(str(folder / MANIFEST)) as file:
        file.write(json.dumps(asdict(manifest), indent=1).encode() + b"\n")


def publish_checkpoint(partial: Path, folder: Path) -> None:
    """Rename a complete folder to its final name, replacing an older one of that name."""
    sync_folder(partial)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def replace_values(folder: Path, name: str) -> None:
    """Switch the manifest to another synced file of plain values; the tensors stay."""
    before = read_manifest(folder)
    files = {key: record for key, record in before.files.items() if key != before.values}
    new = replace(before, values=name, files=files | file_records([folder / name], folder))
    with atomic_write(str(folder / MANIFEST)) as file:
        file.write(json.dumps(asdict(new), indent=1).encode() + b"\n")
    if before.values != name:
        (folder / before.values).unlink(missing_ok=True)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a complete checkpoint.

    Raises:
        CheckpointError: Not a checkpoint, an incomplete one, or of an unknown version.
    """
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is not a checkpoint of this program (since version {VERSION} a "
            "checkpoint is a folder)"
        )
    if not folder.is_dir():
        raise CheckpointError(f"no such checkpoint: {folder}")
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a complete checkpoint: it has no {MANIFEST}")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        version = content["version"]
        if version == VERSION:
            files = {name: FileRecord(**record) for name, record in content.pop("files").items()}
            if content["kind"] not in get_args(Kind):
                raise ValueError(f"unknown kind of checkpoint {content['kind']!r}")
            return Manifest(files=files, **content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    raise CheckpointError(
        f"{folder} has checkpoint version {version}, this program reads version {VERSION}"
    )


def find_corruption(folder: Path) -> str | None:
    """Describe the first corrupt file of a checkpoint; None if all checksums match.

    Raises:
        CheckpointError: As `read_manifest`.
    """
    for name, record in read_manifest(folder).files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != record.bytes:
            return f"{name} has {size} bytes instead of {record.bytes}"
        if file_records([path], folder)[name] != record:
            return f"{name} has a wrong checksum"
    return None


def check_checksums(folder: Path) -> None:
    """Refuse a corrupt checkpoint.

    Raises:
        CheckpointError: Names the first corrupt file; also as `read_manifest`.
    """
    if corruption := find_corruption(folder):
        raise CheckpointError(f"the checkpoint {folder} is corrupt: {corruption}")


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """List a run's checkpoints that have a manifest, the most recently written first."""
    dated = []
    for folder in checkpoints.glob("step-*"):
        try:
            dated.append((read_manifest(folder).written, folder))
        except CheckpointError:
            continue
    return [folder for _, folder in sorted(dated, reverse=True)]


def read_pointer(pointer: Path) -> Path | None:
    """Read which checkpoint a run's `latest` or `best` names; None if there is no such file."""
    try:
        return pointer.parent / pointer.read_text().strip()
    except FileNotFoundError:
        return None


def write_pointer(pointer: Path, folder: Path) -> None:
    """Make a run's `latest` or `best` name a checkpoint."""
    with atomic_write(str(pointer)) as file:
        file.write(f"{folder.relative_to(pointer.parent).as_posix()}\n".encode())


def sync_file(path: Path) -> None:
    """Flush a file to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
