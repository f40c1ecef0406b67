"""Lightning strategies of a run, and its checkpoints' way through Lightning."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.fsdp import FSDPModule

from efficientsam_pl.checkpoints.layout import SHARDS
from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.checkpoints.resume import agree_on_checkpoint
from efficientsam_pl.checkpoints.state import join_state, split_state
from efficientsam_pl.checkpoints.writer import CheckpointWriter
from efficientsam_pl.training.config import InterruptionConfig, TrainerConfig


@dataclass(frozen=True)
class CheckpointFiles:
    """Writer of a run's checkpoints, and the check that a run can resume from one."""

    writer: CheckpointWriter
    check: Callable[[CheckpointReader], None]


class SingleFileCheckpointIO(CheckpointIO):
    """Checkpoints with all tensors in one file: of a single process, or of DDP's equal ranks."""

    def __init__(self, files: CheckpointFiles) -> None:
        self._files = files

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; called on rank 0."""
        self._files.writer.save_plain(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint, or a run's newest one; called on every rank."""
        stored = agree_on_checkpoint(Path(path), self._files.check)
        return join_state(stored.load_all(), stored.values)

    def remove_checkpoint(self, path: Any) -> None:
        """Do nothing: `CheckpointRetention` removes checkpoints."""


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's FSDP2 over all ranks, with gradients reduced once an accumulated step.

    Every rank writes and reads its own shards of a checkpoint.
    """

    def __init__(self, files: CheckpointFiles, world_size: int, timeout: timedelta) -> None:
        super().__init__(data_parallel_size=world_size, tensor_parallel_size=1, timeout=timeout)
        self._files, self._patience = files, timeout
        self._bookkeeping: Any = None  # a group for checkpoints, which may be written on a thread

    def setup_environment(self) -> None:
        """Create the group in which all ranks coordinate checkpoints."""
        super().setup_environment()
        if self._bookkeeping is None:
            self._bookkeeping = dist.new_group(backend="gloo", timeout=self._patience)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Collect this rank's shards of all weights."""
        return get_model_state_dict(cast(nn.Module, self.model))

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Collect this rank's shards of the state, keyed by name (see `optim.state_keys`)."""
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state: dict[str, Any] = get_optimizer_state_dict(cast(nn.Module, self.model), plain)
        return state

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; called on every rank."""
        self._files.writer.save_sharded(checkpoint, Path(filepath), self._bookkeeping)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load this rank's part into the model and its optimizer; return the other values."""
        stored = agree_on_checkpoint(Path(checkpoint_path), self._files.check)
        [optimizer] = self.optimizers
        checkpoint = join_state(self._read(stored, optimizer), stored.values)
        whole = StateDictOptions(full_state_dict=stored.manifest.kind == "plain")
        model = cast(nn.Module, self.model)
        set_model_state_dict(model, checkpoint["state_dict"], options=whole)
        set_optimizer_state_dict(model, optimizer, checkpoint["optimizer_states"][0], options=whole)
        return join_state({}, stored.values)

    def _read(self, stored: CheckpointReader, optimizer: Any) -> Mapping[str, Tensor]:
        """Whole tensors of a plain checkpoint, this rank's shards of a sharded one."""
        if stored.manifest.kind == "plain":
            return stored.load_all()
        template = {
            "state_dict": self.lightning_module_state_dict(),
            "optimizer_states": [self.optimizer_state(optimizer)],
        }
        state, _ = split_state(template)
        reader = FileSystemReader(stored.folder / SHARDS)
        load(state, storage_reader=reader, process_group=self._bookkeeping)
        return state

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Keep this micro-batch's gradients on the rank, unsharded, until the step's last one."""
        self._reduce_gradients(False)
        try:
            yield
        finally:
            self._reduce_gradients(True)

    def _reduce_gradients(self, enabled: bool) -> None:
        for module in cast(nn.Module, self.model).modules():
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(enabled, recurse=False)


def build_strategy(
    config: TrainerConfig, interruption: InterruptionConfig, files: CheckpointFiles
) -> Strategy | str:
    """Build the strategy for Lightning's Trainer."""
    timeout = timedelta(seconds=interruption.collective_timeout_s)
    if config.strategy == "fsdp":
        return FSDP2Strategy(files, config.world_size(), timeout)
    if config.strategy == "ddp" or config.world_size() > 1:
        return DDPStrategy(
            gradient_as_bucket_view=True,
            broadcast_buffers=False,  # they are constant
            timeout=timeout,
        )
    return "auto"
