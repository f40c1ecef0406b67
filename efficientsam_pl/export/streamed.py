"""Write a safetensors file a tensor at a time: safetensors' own writer needs all in memory."""

import json
import os
from collections.abc import Iterable, Mapping
from typing import IO

import torch
from torch import Tensor

from efficientsam_pl.models.content_hash import CHECKSUM, PLACEHOLDER, ContentHash, tensor_bytes

_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_streamed(
    file: IO[bytes],
    shapes: Mapping[str, Tensor],
    tensors: Iterable[Tensor],
    metadata: dict[str, str],
) -> None:
    """Write tensors in the order in which they arrive.

    Args:
        file: An empty file, open for writing.
        shapes: Tensors by name, used for shape and dtype only (meta tensors suffice).
        tensors: One tensor per entry of `shapes`, in that order.
        metadata: String pairs for the file's header; a checksum of the content is added.

    Source:
        The format's specification: eight bytes with the header's length, a JSON header with the
        dtype, shape and offsets of each tensor, then their bytes, little-endian and row-major.
    """
    header: dict[str, object] = {"__metadata__": {**metadata, CHECKSUM: PLACEHOLDER}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + shape.nbytes
        header[name] = {
            "dtype": _DTYPES[shape.dtype],
            "shape": list(shape.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    content = ContentHash(metadata)
    for tensor, (name, shape) in zip(tensors, shapes.items(), strict=True):
        assert (tensor.shape, tensor.dtype) == (shape.shape, shape.dtype), "as in the header"
        content.add(name, tensor)
        file.write(tensor_bytes(tensor))
    file.seek(8 + text.index(_entry(PLACEHOLDER)))
    file.write(_entry(content.checksum()))
    file.seek(0, os.SEEK_END)


def _entry(checksum: str) -> bytes:
    """Encode the checksum as the header has it; in a string its quotes would be escaped."""
    return f'"{CHECKSUM}": "{checksum}"'.encode()
