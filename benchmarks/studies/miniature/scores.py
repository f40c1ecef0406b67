"""Held-out scores of a segmenter in the miniature study: by set and by size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

from benchmarks.studies.finetune_runs import scored
from efficientsam_pl.evaluation.metrics.reachable import GridIouCache
from efficientsam_pl.evaluation.metrics.sizes import SIZES
from efficientsam_pl.evaluation.prompt_metrics import Scores, SizeScores
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.storage.atomic import atomic_write_bytes

_FILE = "scores.json"
NAMES = ("box", "click1", "filled_box", "filled_box_grid", "reachable")


@dataclass(frozen=True)
class Means:
    """Mean IoUs over masks; 0 where there is none.

    `filled_box_grid` and `reachable`: the filled box and the true mask through the model's grid.
    """

    box: float
    click1: float
    filled_box: float
    filled_box_grid: float
    reachable: float
    masks: int

    @staticmethod
    def of(scores: Scores | SizeScores) -> Means:
        """Take what the study reports."""
        if not scores.masks:
            return Means(0.0, 0.0, 0.0, 0.0, 0.0, masks=0)
        return Means(
            scores.box,
            scores.clicks[1],
            scores.filled_box,
            scores.filled_box_grid,
            scores.reachable,
            scores.masks,
        )


@dataclass(frozen=True)
class HeldoutScores:
    """Scores of a model on every held-out set, and by size over all masks of all sets."""

    by_set: Mapping[str, Means]
    by_size: Mapping[str, Means]

    def mean(self, name: str) -> float:
        """Mean of a score over the sets, each counting alike."""
        return fmean(getattr(means, name) for means in self.by_set.values())


def score_heldout(model: Segmenter, shards: Mapping[str, str]) -> HeldoutScores:
    """Score a model by `evaluate`'s protocols `box` and `click_random_1`.

    Args:
        model: On its device.
        shards: Patterns by set.
    """
    scores = {name: scored(model, pattern, grid_values=_grid()) for name, pattern in shards.items()}
    by_size = {size: pooled([s.by_size[size] for s in scores.values()]) for size in SIZES}
    return HeldoutScores({name: Means.of(s) for name, s in scores.items()}, by_size)


def pooled(parts: Sequence[SizeScores]) -> Means:
    """Mean over the masks of several sets."""
    means = [Means.of(part) for part in parts]
    masks = sum(part.masks for part in means)
    box, click1, filled_box, filled_box_grid, reachable = (
        sum(getattr(part, name) * part.masks for part in means) / max(1, masks) for name in NAMES
    )
    return Means(box, click1, filled_box, filled_box_grid, reachable, masks)


def write_scores(folder: Path, scores: HeldoutScores) -> None:
    """Write a model's scores into its run's folder."""
    atomic_write_bytes(folder / _FILE, json.dumps(asdict(scores), indent=1).encode())


def read_scores(folder: Path) -> HeldoutScores | None:
    """Read a model's scores; None before they are written."""
    file = folder / _FILE
    if not file.is_file():
        return None
    content = json.loads(file.read_text())
    return HeldoutScores(
        *({name: Means(**means) for name, means in content[key].items()} for key in content)
    )


@cache
def _grid() -> GridIouCache:
    """One cache for all models of this process: equal grids have equal bounds."""
    return GridIouCache()
