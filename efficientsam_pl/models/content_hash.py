"""Checksum of a weights file's tensors and metadata, whatever their order in the file."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

CHECKSUM = "efficientsam_pl.checksum"  # metadata key; files of earlier versions lack it
_METHOD = "sha256:"
PLACEHOLDER = _METHOD + "0" * 64  # as long as a checksum


class ContentHash:
    """SHA-256 of names, shapes, types and bytes of tensors, and of the other metadata."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self._metadata = {key: value for key, value in metadata.items() if key != CHECKSUM}
        self._tensors: dict[str, tuple[str, list[int], str]] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor; the order of tensors does not count."""
        digest = hashlib.sha256(tensor_bytes(tensor)).hexdigest()
        self._tensors[name] = (str(tensor.dtype), list(tensor.shape), digest)

    def checksum(self) -> str:
        """Return the value for the metadata."""
        content = json.dumps([self._metadata, self._tensors], sort_keys=True)
        return _METHOD + hashlib.sha256(content.encode()).hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """View a CPU tensor's bytes, row-major."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data
