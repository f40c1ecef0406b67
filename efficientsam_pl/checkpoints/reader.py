"""Reading a checkpoint without a process group, a GPU or Lightning, a tensor at a time."""

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
    manifest_of,
)


class CheckpointReader:
    """A whole checkpoint on a disk; nothing large is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Opens it.

        Raises:
            CheckpointError: Not a checkpoint, not a whole one, or of an unknown version.
        """
        self.folder = folder
        self.manifest: Manifest = manifest_of(folder)

    @cached_property
    def values(self) -> dict[str, Any]:
        """The plain values: counters, schedule, data position, config.

        Raises:
            CheckpointError: Their file cannot be read.
        """
        return _loaded(self.folder / self.manifest.values, mapped=False)

    def names(self) -> list[str]:
        """Of all tensors."""
        if self.manifest.kind == "plain":
            return list(self._plain)
        every = self._metadata.state_dict_metadata
        return [name for name, told in every.items() if isinstance(told, TensorStorageMetadata)]

    def tensor(self, name: str) -> Tensor:
        """One tensor, whole, on the CPU; of a sharded checkpoint only its own bytes are read."""
        if self.manifest.kind == "plain":
            return self._plain[name]
        target = {name: torch.empty_like(self.shape(name), device="cpu")}
        with _quiet():
            load(target, storage_reader=self._reader(), no_dist=True)
        return target[name]

    def tensors(
        self, wanted: Callable[[str], bool] = lambda _: True
    ) -> Iterator[tuple[str, Tensor]]:
        """Tensors whose names are wanted, one after the other."""
        for name in self.names():
            if wanted(name):
                yield name, self.tensor(name)

    def whole_state(self) -> dict[str, Tensor]:
        """All tensors, whole, on the CPU, read at once."""
        if self.manifest.kind == "plain":
            return _loaded(self.folder / PLAIN, mapped=False)
        target = {name: torch.empty_like(self.shape(name), device="cpu") for name in self.names()}
        with _quiet():
            load(target, storage_reader=self._reader(), no_dist=True)
        return target

    def shape(self, name: str) -> Tensor:
        """A tensor's shape and type without its numbers: one on torch's meta device."""
        if self.manifest.kind == "plain":
            return torch.empty_like(self._plain[name], device="meta")
        told = self._metadata.state_dict_metadata[name]
        assert isinstance(told, TensorStorageMetadata), "names() gives tensors alone"
        return torch.empty(told.size, dtype=told.properties.dtype, device="meta")

    @cached_property
    def _plain(self) -> dict[str, Tensor]:
        return _loaded(self.folder / PLAIN, mapped=True)

    @cached_property
    def _metadata(self) -> Metadata:
        return self._reader().read_metadata()

    def _reader(self) -> FileSystemReader:
        return FileSystemReader(self.folder / SHARDS)


def _loaded(path: Path, mapped: bool) -> dict[str, Any]:
    """A file of torch's; of a mapped one a tensor's bytes are read when it is used.

    What a run goes on with is not mapped: its file may be removed while it trains.
    """
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}") from error
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remark that there is no process group: that is what is wanted."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*assuming the intent is to load in a single process.*")
        yield
