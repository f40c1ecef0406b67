"""Formats that a checkpoint is converted to, by the output's suffix. Imports no torch."""

from pathlib import Path
from typing import Literal

from efficientsam_pl.errors import UserError

Format = Literal["safetensors", "pt"]
_FORMATS: dict[str, Format] = {".safetensors": "safetensors", ".pt": "pt"}
_HINTS = {
    ".pth": "; PyTorch's form has the suffix .pt here",
    ".bin": "; PyTorch's form has the suffix .pt here",
    ".ckpt": "; PyTorch's form has the suffix .pt here",
    ".onnx": "; it does not write ONNX",
}


def output_format(out: Path) -> Format:
    """Return the format of an output, whose suffix may be in upper case.

    Raises:
        UserError: Another suffix, or none.
    """
    suffix = out.suffix.lower()
    if suffix not in _FORMATS:
        raise UserError(
            f"consolidate writes .safetensors and .pt files, not {out.name}{_HINTS.get(suffix, '')}"
        )
    return _FORMATS[suffix]
