"""Streams for a Trainer. The position in the data is that of the last optimizer step."""

from dataclasses import dataclass, replace
from typing import Any

import lightning as L  # noqa: N812
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from efficientsam_pl.data.build import DatasetSplits
from efficientsam_pl.data.config import DataConfig
from efficientsam_pl.data.dataloaders import Stream, inference_loader, training_loader
from efficientsam_pl.data.sampler import (
    Position,
    RankShard,
    SampleOrder,
    SampleRef,
    TrainingBatchSampler,
)
from efficientsam_pl.errors import UserError
from efficientsam_pl.structures import ImageBatch, MaskBatch
from efficientsam_pl.training.config import TrainerConfig

_STATE_VERSION = 2


@dataclass(frozen=True)
class TrainingDatasets:
    """What is trained and validated on, and in which order.

    `scored`: the held-out photos as they are scored; None: they are not.
    """

    train: Stream
    sample_order: SampleOrder
    sets: DatasetSplits
    heldout: Stream | None
    scored: Stream | None = None


class TrainingDataModule(L.LightningDataModule):
    """Endless training batches from a position on, and exact passes over the held-out set.

    The position is derived from the optimizer's steps, so what workers have prefetched is not
    counted, and a run resumed on other ranks or workers goes on with the next sample.
    """

    # Lightning stores a data module's state in checkpoints under this name and reads no state_key
    __qualname__ = "StreamDataModule"

    def __init__(self, streams: TrainingDatasets, data: DataConfig, config: TrainerConfig) -> None:
        super().__init__()
        self._streams, self._data, self._config = streams, data, config
        self._resumed_at = (Position(), 0)  # and the optimizer's step when this process began
        samples = self.samples()
        if data.last_batch == "drop" and samples < config.global_batch:
            raise UserError(
                f"data.last_batch=drop leaves nothing of {samples} samples at "
                f"trainer.global_batch={config.global_batch}"
            )

    def validates(self) -> bool:
        """Whether there is a held-out set."""
        return self._streams.heldout is not None

    def position(self) -> Position:
        """Behind the last sample that the optimizer has used, over all ranks and restarts."""
        position, step = self._resumed_at
        steps = 0 if self.trainer is None else self.trainer.global_step - step
        return self._streams.sample_order.after(position, steps, self._config.global_batch)

    def train_dataloader(self) -> DataLoader[Any]:
        """This rank's micro-batches from the position on, without an end."""
        batches = TrainingBatchSampler(
            self._streams.sample_order, self._share(), self._resumed_at[0]
        )
        return training_loader(self._streams.train, batches, self._data, self._pinned())

    def first_batches(self) -> DataLoader[Any]:
        """This rank's micro-batches from the first epoch's beginning, read in this process."""
        batches = TrainingBatchSampler(self._streams.sample_order, self._share())
        here = replace(self._data, workers=0)
        return training_loader(self._streams.train, batches, here, self._pinned())

    def first_images(self, count: int) -> Any:
        """The first held-out photos, or training photos where none is held out; on every rank."""
        heldout, shards = self._streams.heldout, self._streams.sets.heldout
        if heldout is None or shards is None:
            heldout, shards = self._streams.train, self._streams.sets.train[0]
        slots = [SampleRef(0, number) for number in range(min(count, len(shards)))]
        batch: ImageBatch | MaskBatch = heldout.collate(heldout.__getitems__(slots))
        return batch

    def samples(self) -> int:
        """Of all training sets together."""
        return self._streams.sets.samples()

    def micro_batches_together(self) -> int:
        """Samples of one micro-batch of each rank."""
        return self._config.micro_batch * self._config.world_size()

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The held-out set, each sample once over all ranks; empty where there is none."""
        heldout, shards = self._streams.heldout, self._streams.sets.heldout
        if heldout is None or shards is None:
            return []
        return inference_loader(
            heldout, len(shards), self._share(), self._data.workers, self._pinned()
        )

    def scoring_batches(self, photos: int | None) -> DataLoader[Any] | list[Any]:
        """The first so many held-out photos (None: all), each once over all ranks, to be scored."""
        scored, shards = self._streams.scored, self._streams.sets.heldout
        if scored is None or shards is None:
            return []
        count = len(shards) if photos is None else min(photos, len(shards))
        return inference_loader(scored, count, self._share(), self._data.workers, self._pinned())

    def transfer_batch_to_device(
        self, batch: ImageBatch | MaskBatch, device: torch.device, dataloader_idx: int
    ) -> ImageBatch | MaskBatch:
        """Asks for copies from pinned memory without waiting for them."""
        return batch.to(device, non_blocking=self._pinned())

    def state_dict(self) -> dict[str, Any]:
        """The position and of which samples it is, for the checkpoint."""
        position = self.position()
        return {
            "version": _STATE_VERSION,
            "epoch": position.epoch,
            "offset": position.offset,
            "steps": 0 if self.trainer is None else self.trainer.global_step,
            "sets": self._fingerprints(),
            "order": self._streams.sample_order.decided_by(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint's position.

        Raises:
            UserError: A position of another version, or in other sets.
        """
        if state_dict["version"] != _STATE_VERSION:
            raise UserError(
                f"the checkpoint's data position is of version {state_dict['version']}, this "
                f"program reads {_STATE_VERSION}; run.resume=none begins anew"
            )
        sets = self._fingerprints()
        if state_dict["sets"] != sets:
            raise UserError(
                f"the checkpoint's data position is in other shards ({state_dict['sets']}) than "
                f"data.train names now ({sets}); run.resume=none begins anew"
            )
        for key, now in self._streams.sample_order.decided_by().items():
            before = state_dict["order"].get(key)
            if before != now:
                raise UserError(
                    f"{key} was {before} when the checkpoint was saved, now it is {now}: its place "
                    "in the data would be another; set it back, or begin anew with run.resume=none"
                )
        position = Position(state_dict["epoch"], state_dict["offset"])
        self._resumed_at = (position, state_dict["steps"])

    def setup(self, stage: str) -> None:
        """Makes sure that all ranks see the same shards.

        Raises:
            UserError: They do not, as where a folder is still being filled.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        seen: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(seen, self._fingerprints())
        if any(one != seen[0] for one in seen):
            raise UserError(f"the ranks see other shards than each other in data.train: {seen}")

    def _fingerprints(self) -> list[str]:
        return [shards.fingerprint() for shards in self._streams.sets.train]

    def _share(self) -> RankShard:
        rank, world = (
            (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        )
        return RankShard(rank, world, self._config.micro_batch, self._config.global_batch)

    def _pinned(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
