"""Count corrupt samples over all ranks and restarts; stop the run when there are too many."""

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
from efficientsam_pl.records import CorruptSample
from efficientsam_pl.storage.files import atomic_write
from efficientsam_pl.structures import Batch
from efficientsam_pl.training.callbacks.corrupt_sample_log import CorruptSampleLog
from efficientsam_pl.training.late_value import LateValues
from efficientsam_pl.training.run.disk_guard import BestEffortWriter

_LISTED = 10_000  # entries of the list at most; the counts are always complete
_CHECK_EVERY_STEPS = 10  # between two sums of all ranks' counts
_MIN_CORRUPT = 3  # corrupt samples before their share is meaningful
_LOGGED = 20  # samples that a rank names in the log; all are in the report


@dataclass
class SampleCounts:
    """Samples seen, and corrupt ones by shard and kind; broken shards are counted separately."""

    seen: int = 0
    bad: int = 0
    by_shard: dict[str, Counter[str]] = field(default_factory=dict)  # counts of each kind
    listed: dict[CorruptSample, None] = field(default_factory=dict)  # an ordered set
    shards: dict[CorruptSample, None] = field(default_factory=dict)

    def add(self, seen: int, corrupt: Iterable[CorruptSample]) -> None:
        """Count the samples of a batch."""
        self.seen += seen
        for sample in corrupt:
            self.bad += 1
            self.by_shard.setdefault(sample.shard, Counter())[sample.kind] += 1
            if len(self.listed) < _LISTED:
                self.listed[sample] = None

    def merge(self, other: "SampleCounts") -> None:
        """Add the counts of another rank or an earlier start."""
        self.seen += other.seen
        self.bad += other.bad
        for shard, kinds in other.by_shard.items():
            self.by_shard.setdefault(shard, Counter()).update(kinds)
        for sample in other.listed:
            if len(self.listed) < _LISTED:
                self.listed[sample] = None
        self.shards |= other.shards

    def as_json(self) -> dict[str, Any]:
        """Convert to the report; each seen sample is good or bad, broken shards are extra."""
        kinds: Counter[str] = Counter()
        for by_kind in self.by_shard.values():
            kinds.update(by_kind)
        return {
            "seen": self.seen,
            "good": self.seen - self.bad,
            "bad": dict(sorted(kinds.items())),
            "shards": {
                shard: dict(sorted(by_kind.items())) for shard, by_kind in self.by_shard.items()
            },
            "list": [vars(sample) for sample in self.listed],
            "broken_shards": [vars(shard) for shard in self.shards],
        }

    @staticmethod
    def from_json(report: dict[str, Any]) -> "SampleCounts":
        """Restore the counts from a report."""
        return SampleCounts(
            seen=report["seen"],
            bad=report["seen"] - report["good"],
            by_shard={shard: Counter(by_kind) for shard, by_kind in report["shards"].items()},
            listed={CorruptSample(**entry): None for entry in report["list"]},
            shards={CorruptSample(**entry): None for entry in report["broken_shards"]},
        )


class DataReport(L.Callback):
    """Count good and corrupt samples, write `data_report.json`, stop the run above a share.

    Ranks sum their counts every few steps, so that all of them stop at the same step. Every
    checkpoint holds the counts of all ranks, so a resumed run continues them; the counts of
    held-out samples are those of the last validation.
    """

    def __init__(self, folder: Path, sets: DatasetSplits, max_bad_fraction: float) -> None:
        self._path = folder / "data_report.json"
        self._writer = BestEffortWriter(
            str(self._path), "it will be written with the next checkpoint"
        )
        self._max_bad_fraction = max_bad_fraction
        self._known = sets.corrupt()
        self._known_heldout = list(sets.heldout.corrupt) if sets.heldout else []
        self._before = SampleCounts()  # of all ranks in earlier starts
        self._local = SampleCounts()  # of this rank in this start
        self._heldout = SampleCounts()
        self._corrupt_samples = CorruptSampleLog(
            _LOGGED, f"further corrupt samples are listed only in {self._path}"
        )
        self._written = False
        self._sums = LateValues(torch.int64)  # samples seen and corrupt ones, over all ranks
        self._sent = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what is known to be corrupt before any sample is read."""
        self._local.shards |= dict.fromkeys(self._known)
        if trainer.is_global_zero:
            self._corrupt_samples.warn([*self._known, *self._known_heldout])

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Count the batch, and stop the run if too many samples are corrupt.

        Raises:
            UserError: The share of corrupt samples is above the limit.
        """
        self._local.add(sum(bool(key) for key in batch.key), batch.corrupt)
        self._corrupt_samples.warn(batch.corrupt)
        if self._sent:
            self._check(trainer)
        due = (batch_idx + 1) % (_CHECK_EVERY_STEPS * trainer.accumulate_grad_batches) == 0
        is_last = trainer.global_step >= trainer.max_steps
        if due or is_last:
            self._send(trainer)
            if is_last or self._sums.at_once:
                self._check(trainer)

    def _send(self, trainer: L.Trainer) -> None:
        """Sum the counts of all ranks; on a GPU the sums are read after the next micro-batch."""
        counts = [self._local.seen, self._local.bad]
        if trainer.world_size == 1:
            self._sums.send(torch.tensor(counts))
        else:
            device = trainer.strategy.root_device
            summed = trainer.strategy.reduce(torch.tensor(counts, device=device), reduce_op="sum")
            self._sums.send(summed)
        self._sent = True

    def _check(self, trainer: L.Trainer) -> None:
        """Stop the run if the summed counts are above the limit; the same on all ranks.

        Raises:
            UserError: They are.
        """
        self._sent = False
        seen, bad = map(int, self._sums.read())
        seen, bad = seen + self._before.seen, bad + self._before.bad
        if bad >= _MIN_CORRUPT and bad > self._max_bad_fraction * seen:
            self._write(trainer, self._full_report())
            raise UserError(
                f"{bad} of {seen} samples are corrupt, more than data.max_bad_fraction="
                f"{self._max_bad_fraction}; they are listed in {self._path}"
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset the counts of held-out samples."""
        self._heldout = SampleCounts(shards=dict.fromkeys(self._known_heldout))

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Count the held-out samples."""
        self._heldout.add(sum(bool(key) for key in batch.key), batch.corrupt)
        self._corrupt_samples.warn(batch.corrupt)

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        """Write the report of all ranks whenever a checkpoint is saved."""
        self._write(trainer, self._full_report())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the report of all ranks."""
        self._write(trainer, self._full_report())

    def on_exception(self, trainer: L.Trainer, *args: Any) -> None:
        """Write rank 0's counts if this start wrote no report; other ranks may be gone."""
        if not self._written:
            self._write(trainer, self._local.as_json())

    @property
    def state_key(self) -> str:
        """Name the state in checkpoints, whatever the class is called."""
        return "DataReport"

    def state_dict(self) -> dict[str, Any]:
        """Report so far; collective, called on every rank when a checkpoint is saved."""
        return self._total(self._before, self._local).as_json()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counts of a checkpoint."""
        self._before, self._local = SampleCounts.from_json(state_dict), SampleCounts()

    def _full_report(self) -> dict[str, Any]:
        """Report of all ranks and starts; collective."""
        heldout = self._total(SampleCounts(), self._heldout).as_json()
        return self._total(self._before, self._local).as_json() | {"heldout": heldout}

    def _total(self, before: SampleCounts, local: SampleCounts) -> SampleCounts:
        gathered: list[Any] = [local]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, local)
        total = SampleCounts()
        for counts in (before, *gathered):
            total.merge(counts)
        return total

    def _write(self, trainer: L.Trainer, report: dict[str, Any]) -> None:
        if not trainer.is_global_zero:
            return
        content = json.dumps(report, indent=1).encode() + b"\n"
        self._written = self._writer.try_write(lambda: _write_whole(self._path, content))


def _write_whole(path: Path, content: bytes) -> None:
    with atomic_write(str(path)) as file:
        file.write(content)
