"""Lightning data module; its position in the data is that of the last optimizer step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import lightning as L  # noqa: N812
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from efficientsam_pl.cluster.launch import STOPPED
from efficientsam_pl.cluster.signals import LostStore, catch_signals
from efficientsam_pl.data.build import DatasetSplits
from efficientsam_pl.data.config import DataConfig
from efficientsam_pl.data.dataloaders import (
    PREFETCH,
    Stream,
    inference_loader,
    training_loader,
)
from efficientsam_pl.data.limits import (
    batches_in_flight,
    check_open_files,
    check_shared_memory,
)
from efficientsam_pl.data.sampler import (
    Position,
    RankShard,
    SampleOrder,
    SampleRef,
    TrainingBatchSampler,
)
from efficientsam_pl.errors import UserError, one_line
from efficientsam_pl.storage.retries import SourceLostError
from efficientsam_pl.structures import Batch
from efficientsam_pl.training.config import TrainerConfig
from efficientsam_pl.training.lookahead import LookaheadLoader, steps_ahead
from efficientsam_pl.training.side_stream import CopiedBatch, SideStream

_STATE_VERSION = 2


@dataclass(frozen=True)
class TrainingDatasets:
    """Datasets for training and validation, and the order of training samples.

    `scored`: the held-out images at scoring size; None: they are not scored. `of_step` replaces
    this rank's training batches of an optimizer step, all together and on the host, before the
    first is used: for a loss that is divided by what the global batch holds (see
    `TrainingModule.step_counts`).
    """

    train: Stream
    sample_order: SampleOrder
    sets: DatasetSplits
    heldout: Stream | None
    scored: Stream | None = None
    of_step: Callable[[list[Any]], list[Any]] | None = None


class TrainingDataModule(L.LightningDataModule):
    """Endless training batches from a position, and exact passes over the held-out set.

    The position is derived from the optimizer's steps, so prefetched samples are not counted, and
    a run resumed on other ranks or workers continues with the next sample.
    """

    # Lightning stores a data module's state in checkpoints under this name and reads no state_key
    __qualname__ = "StreamDataModule"

    def __init__(self, streams: TrainingDatasets, data: DataConfig, config: TrainerConfig) -> None:
        super().__init__()
        self._streams, self._data, self._config = streams, data, config
        self._resumed_at = (Position(), 0)  # position and optimizer step where this process started
        samples = self.samples()
        if data.last_batch == "drop" and samples < config.global_batch:
            raise UserError(
                f"data.last_batch=drop leaves no batch of {samples} samples at "
                f"trainer.global_batch={config.global_batch}"
            )

    def validates(self) -> bool:
        """Whether there is a held-out set."""
        return self._streams.heldout is not None

    def position(self) -> Position:
        """Position after the last sample that the optimizer used, over all ranks and restarts."""
        position, step = self._resumed_at
        steps = 0 if self.trainer is None else self.trainer.global_step - step
        return self._streams.sample_order.after(position, steps, self._config.global_batch)

    def train_dataloader(self) -> LookaheadLoader:
        """Endless micro-batches of this rank, from the current position."""
        position, step = self._resumed_at
        batches = TrainingBatchSampler(self._streams.sample_order, self._rank_shard(), position)
        loader = training_loader(self._streams.train, batches, self._data, self._pinned())
        per_step = self._config.accumulate()
        needed = (self._config.max_steps - step) * per_step
        lookahead = partial(
            LookaheadLoader,
            *(loader, per_step, needed, _note_lost_store),
            of_step=self._streams.of_step,
        )
        if not self._pinned():
            return lookahead()
        side_stream = SideStream(self.trainer.strategy.root_device)  # type: ignore[union-attr]
        return lookahead(prepare=side_stream.start)

    def first_batches(self) -> DataLoader[Any]:
        """Micro-batches of this rank from the start of the first epoch, read in this process."""
        batches = TrainingBatchSampler(self._streams.sample_order, self._rank_shard())
        in_process = replace(self._data, workers=0)
        return training_loader(self._streams.train, batches, in_process, self._pinned())

    def first_images(self, count: int) -> Any:
        """First held-out images, else training images; the same on every rank."""
        heldout, shards = self._streams.heldout, self._streams.sets.heldout
        if heldout is None or shards is None:
            heldout, shards = self._streams.train, self._streams.sets.train[0]
        samples = [SampleRef(0, number) for number in range(min(count, len(shards)))]
        batch: Batch = heldout.collate(heldout.__getitems__(samples))
        return batch

    def samples(self) -> int:
        """Count the samples of all training sets."""
        return self._streams.sets.samples()

    def samples_per_micro_step(self) -> int:
        """Count the samples in one micro-batch of every rank together."""
        return self._config.micro_batch * self._config.world_size()

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Held-out set, each sample once over all ranks; empty if there is none."""
        heldout, shards = self._streams.heldout, self._streams.sets.heldout
        if heldout is None or shards is None:
            return []
        return inference_loader(
            heldout, len(shards), self._rank_shard(), self._data.workers, self._pinned()
        )

    def scoring_batches(self, max_images: int | None) -> DataLoader[Any] | list[Any]:
        """Held-out images to score, at most so many (None: all), each once over all ranks."""
        scored, shards = self._streams.scored, self._streams.sets.heldout
        if scored is None or shards is None:
            return []
        count = len(shards) if max_images is None else min(max_images, len(shards))
        return inference_loader(
            scored, count, self._rank_shard(), self._data.workers, self._pinned()
        )

    def transfer_batch_to_device(
        self, batch: Batch | CopiedBatch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Copy from pinned memory asynchronously, unless a copy was started before."""
        if isinstance(batch, CopiedBatch):
            arrived: Batch = batch.arrived(torch.cuda.current_stream(device))
            return arrived
        return batch.to(device, non_blocking=self._pinned())

    def state_dict(self) -> dict[str, Any]:
        """Position, and which samples it refers to."""
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
        """Continue from a checkpoint's position.

        Raises:
            UserError: The position has another version, or refers to other data.
        """
        if state_dict["version"] != _STATE_VERSION:
            raise UserError(
                f"the checkpoint's data position has version {state_dict['version']}, this program "
                f"reads version {_STATE_VERSION}; run.resume=none starts from scratch"
            )
        sets = self._fingerprints()
        if state_dict["sets"] != sets:
            raise UserError(
                f"the checkpoint's data position refers to other shards ({state_dict['sets']}) "
                f"than data.train now names ({sets}); run.resume=none starts from scratch"
            )
        for key, now in self._streams.sample_order.decided_by().items():
            before = state_dict["order"].get(key)
            if before != now:
                raise UserError(
                    f"{key} was {before} when the checkpoint was saved, now it is {now}, which "
                    "changes the order of samples; set it back, or start from scratch with "
                    "run.resume=none"
                )
        position = Position(state_dict["epoch"], state_dict["offset"])
        self._resumed_at = (position, state_dict["steps"])

    def setup(self, stage: str) -> None:
        """Check the machine's limits, and that all ranks see the same shards.

        Raises:
            UserError: A limit is too low, or the ranks see other shards, for example because a
                folder is still being filled.
        """
        self._check_limits()  # before ranks meet: then none has begun to fill shared memory
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        fingerprints: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(fingerprints, self._fingerprints())
        if any(ours != fingerprints[0] for ours in fingerprints):
            raise UserError(f"ranks see different shards in data.train: {fingerprints}")

    def _check_limits(self) -> None:
        workers, config = self._data.workers, self._config
        if workers == 0:
            return
        kept = steps_ahead(config.accumulate()) + 1
        samples, heldout = config.micro_batch, self._streams.heldout
        training = workers * self._data.read_ahead + kept
        loaders = [batches_in_flight(self._streams.train, samples, training)]
        if heldout is not None:  # whose workers run beside those that read ahead for training
            loaders.append(batches_in_flight(heldout, samples, workers * PREFETCH + 1))
        check_open_files(loaders, workers * len(loaders))
        check_shared_memory(loaders, config.devices or 1)

    def _fingerprints(self) -> list[str]:
        return [shards.fingerprint() for shards in self._streams.sets.train]

    def _rank_shard(self) -> RankShard:
        rank, world = (
            (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        )
        return RankShard(rank, world, self._config.micro_batch, self._config.global_batch)

    def _pinned(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def _note_lost_store(error: Exception) -> None:
    """Request the run to save and stop (see Preemption)."""
    code = STOPPED if isinstance(error, SourceLostError) else 2
    catch_signals().note_lost_store(LostStore(one_line(error), code))
