"""A checkpoint is a folder; it is one when its last file, the manifest, is there.

    step-00000010/
        run.pt          plain values: counters, schedule, data position, seeds, config, versions
        state.pt        tensors in one file (one process, DDP), or
        state/          tensors in torch.distributed.checkpoint's shards (FSDP2)
        complete.json   version, step, and size and checksum of every other file; written last

The folder is filled under another name and renamed when its manifest is synced, so that neither a
killed writer nor a reader on another machine can take a part for the whole.
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
from typing import Any, Literal

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.atomic import sync_folder
from efficientsam_pl.storage.files import atomic_write

VERSION = 3
MANIFEST, PLAIN, SHARDS, VALUES = "complete.json", "state.pt", "state", "run.pt"
_checksum = partial(hashlib.blake2b, digest_size=16)

Kind = Literal["plain", "sharded"]


class CheckpointError(UserError):
    """What is no checkpoint of this program, or none that can be trusted; one line."""


@dataclass(frozen=True)
class StoredPart:
    """A file of a checkpoint as it was when the checkpoint was written."""

    bytes: int
    blake2b: str


@dataclass(frozen=True)
class Manifest:
    """What a whole checkpoint tells about itself."""

    kind: Kind
    step: int
    values: str  # the file of plain values
    files: Mapping[str, StoredPart]
    written: float  # seconds since 1970
    version: int = VERSION


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return checkpoints / f"step-{step:08d}"


def unfinished(folder: Path) -> Path:
    """Where a checkpoint is written before it has its name."""
    return folder.with_name(f".{folder.name}.part")


def measured(files: Iterable[Path], root: Path) -> dict[str, StoredPart]:
    """Sizes and checksums by names relative to a checkpoint's folder."""
    found = {}
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, _checksum)
        found[path.relative_to(root).as_posix()] = StoredPart(
            path.stat().st_size, digest.hexdigest()
        )
    return found


def seal(folder: Path, kind: Kind, step: int, values: str, files: Mapping[str, StoredPart]) -> None:
    """Writes the manifest of a folder whose other files are synced: its last file."""
    manifest = Manifest(kind, step, values, files, time.time())
    with atomic_write(str(folder / MANIFEST)) as file:
        file.write(json.dumps(asdict(manifest), indent=1).encode() + b"\n")


def put_in_place(partial: Path, folder: Path) -> None:
    """Gives a sealed folder its name; one that a run has left there before is removed."""
    sync_folder(partial)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def replace_values(folder: Path, name: str) -> None:
    """Makes another synced file of the folder its plain values; the tensors stay as they are."""
    before = manifest_of(folder)
    files = {key: part for key, part in before.files.items() if key != before.values}
    new = replace(before, values=name, files=files | measured([folder / name], folder))
    with atomic_write(str(folder / MANIFEST)) as file:
        file.write(json.dumps(asdict(new), indent=1).encode() + b"\n")
    if before.values != name:
        (folder / before.values).unlink(missing_ok=True)


def manifest_of(folder: Path) -> Manifest:
    """A whole checkpoint's manifest.

    Raises:
        CheckpointError: Not a checkpoint, not a whole one, or of an unknown version.
    """
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is no checkpoint of this program (since version {VERSION} a checkpoint is a "
            "folder)"
        )
    if not folder.is_dir():
        raise CheckpointError(f"no such checkpoint: {folder}")
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} is no whole checkpoint: it has no {MANIFEST}")
    try:
        told: dict[str, Any] = json.loads(path.read_text())
        version = told["version"]
        if version == VERSION:
            files = {name: StoredPart(**part) for name, part in told.pop("files").items()}
            return Manifest(files=files, **told)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    raise CheckpointError(
        f"{folder} has checkpoint version {version}, this program reads version {VERSION}"
    )


def corruption_of(folder: Path) -> str | None:
    """What of a checkpoint is not as it was written; None: nothing, all checksums are right.

    Raises:
        CheckpointError: As `manifest_of`.
    """
    for name, part in manifest_of(folder).files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != part.bytes:
            return f"{name} has {size} bytes instead of {part.bytes}"
        if measured([path], folder)[name] != part:
            return f"{name} is not what was written: its checksum is another"
    return None


def whole_checkpoints(checkpoints: Path) -> list[Path]:
    """A run's checkpoints that have a manifest, the last written first."""
    found = []
    for folder in checkpoints.glob("step-*"):
        try:
            found.append((manifest_of(folder).written, folder))
        except CheckpointError:
            continue
    return [folder for _, folder in sorted(found, reverse=True)]


def pointed_to(pointer: Path) -> Path | None:
    """The checkpoint that a run's `latest` or `best` names; None where there is no such file."""
    try:
        return pointer.parent / pointer.read_text().strip()
    except FileNotFoundError:
        return None


def point(pointer: Path, folder: Path) -> None:
    """Makes a run's `latest` or `best` name a checkpoint."""
    with atomic_write(str(pointer)) as file:
        file.write(f"{folder.relative_to(pointer.parent).as_posix()}\n".encode())


def sync(path: Path) -> None:
    """Waits until a file is on its disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
