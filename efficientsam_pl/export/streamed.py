"""A safetensors file written a tensor at a time: safetensors' own writer wants all at once."""

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
    """Writes tensors as they come.

    Args:
        file: Open for writing, and empty.
        shapes: By name; of each only shape and type are looked at (meta tensors will do).
        tensors: One of each shape, in that order.
        metadata: Kept in the file's header.

    Source:
        The format's description: eight bytes with the header's length, a JSON header that names
        type, shape and place of each tensor, then their bytes, little-endian and row by row.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    place = 0
    for name, shape in shapes.items():
        end = place + shape.nbytes
        header[name] = {
            "dtype": _DTYPES[shape.dtype],
            "shape": list(shape.shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor, shape in zip(tensors, shapes.values(), strict=True):
        assert (tensor.shape, tensor.dtype) == (shape.shape, shape.dtype), "as announced"
        file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
