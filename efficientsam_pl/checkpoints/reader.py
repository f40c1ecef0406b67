"""Read checkpoints tensor by tensor, without a process group, a GPU or Lightning."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from efficientsam_pl.checkpoints.layout import (
    PLAIN,
    SHARDS,
    CheckpointError,
    Manifest,
    read_manifest,
)


class CheckpointReader:
    """A complete local checkpoint, read lazily."""

    def __init__(self, folder: Path) -> None:
        """Open a checkpoint.

        Raises:
            CheckpointError: Not a checkpoint, an incomplete one, or of an unknown version.
        """
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)

    @cached_property
    def values(self) -> dict[str, Any]:
        """Plain values: counters, schedule, data position, config.

        Raises:
            CheckpointError: The file cannot be read.
        """
        return _load(self.folder / self.manifest.values, mmap=False)

    def names(self) -> list[str]:
        """List the names of all tensors."""
        if self.manifest.kind == "plain":
            return list(self._plain)
        entries = self._metadata.state_dict_metadata
        return [name for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)]

    def tensor(self, name: str) -> Tensor:
        """Load a full tensor to the CPU; from a sharded checkpoint only its bytes are read."""
        if self.manifest.kind == "plain":
            return self._plain[name]
        target = {name: torch.empty_like(self.meta_tensor(name), device="cpu")}
        with _quiet():
            load(target, storage_reader=self._reader(), no_dist=True)
        return target[name]

    def tensors(
        self, predicate: Callable[[str], bool] = lambda _: True
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors whose names pass the predicate, one at a time."""
        for name in self.names():
            if predicate(name):
                yield name, self.tensor(name)

    def load_all(self) -> dict[str, Tensor]:
        """Load all tensors to the CPU."""
        if self.manifest.kind == "plain":
            return _load(self.folder / PLAIN, mmap=False)
        target = {
            name: torch.empty_like(self.meta_tensor(name), device="cpu") for name in self.names()
        }
        with _quiet():
            load(target, storage_reader=self._reader(), no_dist=True)
        return target

    def meta_tensor(self, name: str) -> Tensor:
        """Shape and dtype of a tensor, as a tensor on the meta device."""
        if self.manifest.kind == "plain":
            return torch.empty_like(self._plain[name], device="meta")
        entry = self._metadata.state_dict_metadata[name]
        assert isinstance(entry, TensorStorageMetadata), "names() lists only tensors"
        return torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")

    @cached_property
    def _plain(self) -> dict[str, Tensor]:
        return _load(self.folder / PLAIN, mmap=True)

    @cached_property
    def _metadata(self) -> Metadata:
        return self._reader().read_metadata()

    def _reader(self) -> FileSystemReader:
        return FileSystemReader(self.folder / SHARDS)


def _load(path: Path, mmap: bool) -> dict[str, Any]:
    """Load a file written by `torch.save`; with `mmap`, tensors are read when they are used.

    A run that resumes must not map its checkpoint: retention may delete the file during training.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises many types for a file that it did not write
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}") from error
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's warning that there is no process group, which is intended here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*assuming the intent is to load in a single process.*")
        yield
