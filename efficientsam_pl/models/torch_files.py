"""Read files of `torch.save`, also inside a zip, without running any code that they hold."""

import argparse
import io
import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from efficientsam_pl.models.weights_source import WeightsError

_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError)
_CHUNK = 1 << 20


def load_torch_file(path: Path) -> Any:
    """Load what `torch.save` wrote: tensors and plain containers, nothing else.

    The checksums in the file are verified first, which torch does not do.

    Raises:
        WeightsError: Another file, a corrupt one, or one that holds other objects.
    """
    unzipped = _unzipped(path) if zipfile.is_zipfile(path) else None
    try:
        # training programs often store their arguments, a record of plain values
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            unzipped or path.open("rb") as file,  # by a path, torch goes by its suffix
        ):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file that it did not write
        raise WeightsError(
            f"weights: {path} cannot be read as a checkpoint of plain tensors{_cause(error)}"
        ) from error


def _cause(error: Exception) -> str:
    """Name the object that torch refuses to load, if that is why it failed."""
    text = str(error)
    refused = re.search(r"Unsupported (?:global|class)[:\s]+(?:GLOBAL )?([\w.]+)", text)
    if refused:
        return (
            f": it holds {refused[1]}, which is not loaded for safety; save the state dict alone: "
            "torch.save(model.state_dict(), FILE)"
        )
    if "TorchScript" in text:
        return ": it is a TorchScript program; save its state_dict()"
    return ""


def _unzipped(path: Path) -> io.BytesIO | None:
    """Extract the file in a zip; None if it is one of torch's own, with a data.pkl."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not _is_junk(info)]
            if any(name.endswith("data.pkl") for name in names):
                _verify(archive)
                return None
            inside = [name for name in names if name.lower().endswith(_SUFFIXES)]
            if len(inside) == 1:
                return io.BytesIO(archive.read(inside[0]))
    except _ZIP_ERRORS as error:
        raise WeightsError(f"weights: {path} is corrupt: {' '.join(str(error).split())}") from error
    raise WeightsError(
        f"weights: {path} holds {len(inside)} .pt files, expected one ({', '.join(names[:6])})"
    )


def _is_junk(info: zipfile.ZipInfo) -> bool:
    """Whether an entry is a folder, or one of those that macOS adds: `__MACOSX/._x.pt`."""
    path = PurePosixPath(info.filename)
    return info.is_dir() or "__MACOSX" in path.parts or path.name.startswith((".DS_Store", "._"))


def _verify(archive: zipfile.ZipFile) -> None:
    """Read every record that has a checksum; zipfile raises an error where it differs."""
    for info in archive.infolist():
        if info.CRC:  # torch can be set to write none
            with archive.open(info) as record:
                while record.read(_CHUNK):
                    pass
