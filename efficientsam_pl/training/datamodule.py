"""Streams for a Trainer. The position in the data is one number, samples consumed globally."""

from dataclasses import dataclass
from typing import Any

import lightning as L  # noqa: N812
from torch.utils.data import DataLoader

from efficientsam_pl.data.config import ShardsConfig
from efficientsam_pl.data.loaders import Stream, once_loader, training_loader
from efficientsam_pl.data.order import EndlessBatches, Share
from efficientsam_pl.training.config import TrainerConfig

_STATE_VERSION = 1


@dataclass(frozen=True)
class Streams:
    """What is trained and validated on."""

    train: Stream
    shard_sizes: list[int]
    heldout: Stream | None
    heldout_samples: int


class StreamDataModule(L.LightningDataModule):
    """Endless training batches from a position on, and exact passes over the held-out set.

    The position is derived from the optimizer's steps, so what workers have prefetched is not
    counted, and a run resumed on another number of ranks goes on with the next sample.
    """

    def __init__(
        self, streams: Streams, shards: ShardsConfig, config: TrainerConfig, seed: int
    ) -> None:
        super().__init__()
        self._streams, self._shards, self._config, self._seed = streams, shards, config, seed
        self._resumed_at = (0, 0)  # samples consumed and optimizer steps when this process began

    def validates(self) -> bool:
        """Whether there is a held-out set."""
        return self._streams.heldout is not None

    def consumed(self) -> int:
        """Samples that the optimizer has used, over all ranks and all restarts."""
        samples, step = self._resumed_at
        steps = 0 if self.trainer is None else self.trainer.global_step - step
        return samples + steps * self._config.global_batch

    def train_dataloader(self) -> DataLoader[Any]:
        """This rank's micro-batches from the position on, without an end."""
        batches = EndlessBatches(
            self._streams.shard_sizes,
            self._seed,
            self._shards.block_shards,
            self._share(),
            self._resumed_at[0],
        )
        pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return training_loader(self._streams.train, batches, self._shards.workers, pin)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The held-out set, each sample once over all ranks; empty where there is none."""
        if self._streams.heldout is None:
            return []
        return once_loader(
            self._streams.heldout,
            self._streams.heldout_samples,
            self._share(),
            self._shards.workers,
        )

    def state_dict(self) -> dict[str, Any]:
        """The position, for the checkpoint."""
        steps = 0 if self.trainer is None else self.trainer.global_step
        return {"version": _STATE_VERSION, "consumed": self.consumed(), "steps": steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint's position."""
        if state_dict["version"] != _STATE_VERSION:
            raise ValueError(
                f"data position of version {state_dict['version']}, "
                f"this program reads {_STATE_VERSION}"
            )
        self._resumed_at = (state_dict["consumed"], state_dict["steps"])

    def _share(self) -> Share:
        rank, world = (
            (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        )
        return Share(rank, world, self._config.micro_batch, self._config.global_batch)
