"""What was damaged in the data: told, counted over all ranks and restarts, and too much stops."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch
import torch.distributed as dist

from efficientsam_pl.errors import UserError
from efficientsam_pl.structures import Damage, ImageBatch, MaskBatch

_LISTED = 10_000  # entries of the list at most; the counts are always complete
_TOLD = 20  # samples a rank names in the log; the rest is in the report

_log = logging.getLogger(__name__)


@dataclass
class Tally:
    """Slots seen, and what was wrong with the bad ones."""

    seen: int = 0
    bad: int = 0  # slots
    by_shard: dict[str, Counter[str]] = field(default_factory=dict)
    listed: dict[Damage, None] = field(default_factory=dict)  # in order, each once

    def add(self, seen: int, damage: Iterable[Damage]) -> None:
        """Counts the slots of a batch."""
        self.seen += seen
        for one in damage:
            self.bad += bool(one.key)
            self.by_shard.setdefault(one.shard, Counter())[one.kind] += 1
            if len(self.listed) < _LISTED:
                self.listed[one] = None

    def merge(self, other: "Tally") -> None:
        """Adds another rank's, or an earlier start's."""
        self.seen += other.seen
        self.bad += other.bad
        for shard, kinds in other.by_shard.items():
            self.by_shard.setdefault(shard, Counter()).update(kinds)
        for one in list(other.listed)[: _LISTED - len(self.listed)]:
            self.listed[one] = None

    def as_json(self) -> dict[str, Any]:
        """The report."""
        kinds: Counter[str] = Counter()
        for own in self.by_shard.values():
            kinds.update(own)
        return {
            "seen": self.seen,
            "good": self.seen - self.bad,
            "bad": dict(sorted(kinds.items())),
            "shards": {shard: dict(sorted(own.items())) for shard, own in self.by_shard.items()},
            "list": [vars(one) for one in self.listed],
        }

    @staticmethod
    def from_json(report: dict[str, Any]) -> "Tally":
        """The tally of a report."""
        return Tally(
            seen=report["seen"],
            bad=report["seen"] - report["good"],
            by_shard={shard: Counter(own) for shard, own in report["shards"].items()},
            listed={Damage(**one): None for one in report["list"]},
        )


class DataReport(L.Callback):
    """Counts good and damaged samples, writes `data_report.json`, stops the run above a share.

    Ranks add their counts up every few steps, so that all of them stop at the same one. The
    tally of all ranks lies in every checkpoint, so a resumed run goes on counting.
    """

    def __init__(
        self,
        folder: Path,
        known: Sequence[Damage],
        max_bad_fraction: float,
        every_steps: int = 10,
    ) -> None:
        self._path = folder / "data_report.json"
        self._most, self._every = max_bad_fraction, every_steps
        self._known = tuple(known)
        self._before, self._own = Tally(), Tally()  # of earlier starts and all ranks; of this rank
        self._told = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tells what is known to be broken before a sample is read."""
        if trainer.is_global_zero:
            fresh = [one for one in self._known if one not in self._before.listed]
            self._own.add(0, fresh)
            self._tell(self._known)

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
        self._own.add(sum(bool(key) for key in batch.key), batch.damage)
        self._tell(batch.damage)
        due = (batch_idx + 1) % (self._every * trainer.accumulate_grad_batches) == 0
        if not due and trainer.global_step < trainer.max_steps:
            return
        counts = torch.tensor([self._own.seen, self._own.bad], device=trainer.strategy.root_device)
        seen, bad = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        seen, bad = seen + self._before.seen, bad + self._before.bad
        if bad > self._most * seen:
            self._write(trainer, self._total())
            raise UserError(
                f"{bad} of {seen} samples are damaged, more than data.max_bad_fraction="
                f"{self._most}; they are listed in {self._path}"
            )

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Tells of damage among the held-out samples; the tally is of training."""
        self._tell(batch.damage)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the report of all ranks."""
        self._write(trainer, self._total())

    def state_dict(self) -> dict[str, Any]:
        """The report so far; every rank calls it when a checkpoint is saved."""
        return self._total().as_json()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting from a checkpoint's report."""
        self._before, self._own = Tally.from_json(state_dict), Tally()

    def _total(self) -> Tally:
        """Of all ranks and starts; every rank calls it."""
        tallies: list[Any] = [self._own]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            tallies = [None] * dist.get_world_size()
            dist.all_gather_object(tallies, self._own)
        total = Tally()
        for tally in (self._before, *tallies):
            total.merge(tally)
        return total

    def _tell(self, damage: Iterable[Damage]) -> None:
        for one in damage:
            self._told += 1
            if self._told <= _TOLD:
                _log.warning("%s %s: %s (%s)", one.shard, one.key, one.kind, one.detail)
            if self._told == _TOLD:
                _log.warning("further damaged samples are told in %s alone", self._path)

    def _write(self, trainer: L.Trainer, total: Tally) -> None:
        if not trainer.is_global_zero:
            return
        partial = self._path.with_suffix(".part")
        partial.write_text(json.dumps(total.as_json(), indent=1) + "\n")
        partial.replace(self._path)
