"""Write a safetensors file a tensor at a time: safetensors' own writer needs all in memory."""

import json
from collections.abc import Iterable, Mapping
from typing import IO

import torch
from torch import Tensor

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
        metadata: String pairs for the file's header.

    Source:
        The format's specification: eight bytes with the header's length, a JSON header with the
        dtype, shape and offsets of each tensor, then their bytes, little-endian and row-major.
    """
    header: dict[str, object] = {"__metadata__": metadata}
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
    for tensor, shape in zip(tensors, shapes.values(), strict=True):
        assert (tensor.shape, tensor.dtype) == (shape.shape, shape.dtype), "as in the header"
        file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
