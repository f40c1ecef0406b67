"""What was damaged in the data: told, counted over all ranks and restarts, and too much stops."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch
import torch.distributed as dist

from efficientsam_pl.data.build import DatasetSplits
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import atomic_write
from efficientsam_pl.structures import CorruptSample, ImageBatch, MaskBatch
from efficientsam_pl.training.callbacks.corrupt_sample_log import CorruptSampleLog
from efficientsam_pl.training.run.disk_guard import BestEffortWriter

_LISTED = 10_000  # entries of the list at most; the counts are always complete
_EVERY_STEPS = 10  # between two looks at all ranks' counts
_FEWEST = 3  # damaged samples before a share of them means anything
_TOLD = 20  # samples a rank names in the log; the rest is in the report


@dataclass
class SampleCounts:
    """Slots seen and what was wrong with the bad ones; shards that are broken as such, apart."""

    seen: int = 0
    bad: int = 0
    by_shard: dict[str, Counter[str]] = field(default_factory=dict)  # of slots
    listed: dict[CorruptSample, None] = field(default_factory=dict)  # in order, each once
    shards: dict[CorruptSample, None] = field(default_factory=dict)

    def add(self, seen: int, damage: Iterable[CorruptSample]) -> None:
        """Counts the slots of a batch."""
        self.seen += seen
        for one in damage:
            self.bad += 1
            self.by_shard.setdefault(one.shard, Counter())[one.kind] += 1
            if len(self.listed) < _LISTED:
                self.listed[one] = None

    def merge(self, other: "SampleCounts") -> None:
        """Adds another rank's, or an earlier start's."""
        self.seen += other.seen
        self.bad += other.bad
        for shard, kinds in other.by_shard.items():
            self.by_shard.setdefault(shard, Counter()).update(kinds)
        for one in other.listed:
            if len(self.listed) < _LISTED:
                self.listed[one] = None
        self.shards |= other.shards

    def as_json(self) -> dict[str, Any]:
        """The report. What is seen is good or bad of one kind; `broken_shards` are no slots."""
        kinds: Counter[str] = Counter()
        for own in self.by_shard.values():
            kinds.update(own)
        return {
            "seen": self.seen,
            "good": self.seen - self.bad,
            "bad": dict(sorted(kinds.items())),
            "shards": {shard: dict(sorted(own.items())) for shard, own in self.by_shard.items()},
            "list": [vars(one) for one in self.listed],
            "broken_shards": [vars(one) for one in self.shards],
        }

    @staticmethod
    def from_json(report: dict[str, Any]) -> "SampleCounts":
        """The tally of a report."""
        return SampleCounts(
            seen=report["seen"],
            bad=report["seen"] - report["good"],
            by_shard={shard: Counter(own) for shard, own in report["shards"].items()},
            listed={CorruptSample(**one): None for one in report["list"]},
            shards={CorruptSample(**one): None for one in report["broken_shards"]},
        )


class DataReport(L.Callback):
    """Counts good and damaged samples, writes `data_report.json`, stops the run above a share.

    Ranks add their counts up every few steps, so that all of them stop at the same one. The
    tally of all ranks lies in every checkpoint, so a resumed run goes on counting; that of the
    held-out samples is of the last validation.
    """

    def __init__(self, folder: Path, sets: DatasetSplits, max_bad_fraction: float) -> None:
        self._path = folder / "data_report.json"
        self._room = BestEffortWriter(
            str(self._path), "it is written again with the next checkpoint"
        )
        self._most = max_bad_fraction
        self._known = sets.corrupt()
        self._known_heldout = list(sets.heldout.corrupt) if sets.heldout else []
        self._before, self._own = (
            SampleCounts(),
            SampleCounts(),
        )  # of earlier starts and all ranks; of this rank
        self._heldout = SampleCounts()
        self._corrupt_samples = CorruptSampleLog(
            _TOLD, f"further damaged samples are told in {self._path} alone"
        )
        self._written = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tells what is known to be broken before a sample is read."""
        self._own.shards |= dict.fromkeys(self._known)
        if trainer.is_global_zero:
            self._corrupt_samples.warn([*self._known, *self._known_heldout])

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: ImageBatch | MaskBatch,
        batch_idx: int,
    ) -> None:
        """Counts, and stops where too much is damaged.

        Raises:
            UserError: The share of damaged samples is above the limit.
        """
        self._own.add(sum(bool(key) for key in batch.key), batch.corrupt)
        self._corrupt_samples.warn(batch.corrupt)
        due = (batch_idx + 1) % (_EVERY_STEPS * trainer.accumulate_grad_batches) == 0
        if not due and trainer.global_step < trainer.max_steps:
            return
        counts = torch.tensor([self._own.seen, self._own.bad], device=trainer.strategy.root_device)
        seen, bad = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        seen, bad = seen + self._before.seen, bad + self._before.bad
        if bad >= _FEWEST and bad > self._most * seen:
            self._write(trainer, self._whole())
            raise UserError(
                f"{bad} of {seen} samples are damaged, more than data.max_bad_fraction="
                f"{self._most}; they are listed in {self._path}"
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins the held-out samples' tally anew."""
        self._heldout = SampleCounts(shards=dict.fromkeys(self._known_heldout))

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Counts the held-out samples."""
        self._heldout.add(sum(bool(key) for key in batch.key), batch.corrupt)
        self._corrupt_samples.warn(batch.corrupt)

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        """Writes the report of all ranks, each time that a checkpoint is saved."""
        self._write(trainer, self._whole())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the report of all ranks."""
        self._write(trainer, self._whole())

    def on_exception(self, trainer: L.Trainer, *args: Any) -> None:
        """Writes rank 0's part where this start has written nothing: other ranks may be gone."""
        if not self._written:
            self._write(trainer, self._own.as_json())

    @property
    def state_key(self) -> str:
        """Name the state in checkpoints, whatever the class is called."""
        return "DataReport"

    def state_dict(self) -> dict[str, Any]:
        """The report so far; every rank calls it when a checkpoint is saved."""
        return self._total(self._before, self._own).as_json()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting from a checkpoint's report."""
        self._before, self._own = SampleCounts.from_json(state_dict), SampleCounts()

    def _whole(self) -> dict[str, Any]:
        """The report of all ranks and starts; every rank calls it."""
        heldout = self._total(SampleCounts(), self._heldout).as_json()
        return self._total(self._before, self._own).as_json() | {"heldout": heldout}

    def _total(self, before: SampleCounts, own: SampleCounts) -> SampleCounts:
        tallies: list[Any] = [own]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            tallies = [None] * dist.get_world_size()
            dist.all_gather_object(tallies, own)
        total = SampleCounts()
        for tally in (before, *tallies):
            total.merge(tally)
        return total

    def _write(self, trainer: L.Trainer, report: dict[str, Any]) -> None:
        if not trainer.is_global_zero:
            return
        content = json.dumps(report, indent=1).encode() + b"\n"
        self._written = self._room.attempt(lambda: _write_whole(self._path, content))


def _write_whole(path: Path, content: bytes) -> None:
    with atomic_write(str(path)) as file:
        file.write(content)
