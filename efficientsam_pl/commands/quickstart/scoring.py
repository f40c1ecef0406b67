"""The quickstart's scores: a split before and after training, beside what needs no model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from efficientsam_pl.commands.shard_scores import score
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.evaluation.prompt_metrics import Scores, SizeScores
from efficientsam_pl.models.segmenter import Segmenter


@dataclass(frozen=True)
class Split:
    """Scores of one split by the untrained and by the trained model."""

    untrained: Scores
    trained: Scores


def score_split(
    models: tuple[Segmenter, Segmenter], pattern: str, seed: int, most: int | None
) -> Split:
    """Score the untrained and the trained model on a split's images.

    Args:
        models: Untrained and trained.
        pattern: Of the split's shards.
        seed: Of the clicks.
        most: Images that are scored, the first ones; None: all.
    """
    untrained, trained = (
        score(model, open_shards(pattern), seed, images=most)[0] for model in models
    )
    return Split(untrained, trained)


def split_metrics(split: Split) -> dict[str, Any]:
    """The numbers of `metrics.json` for one split; null where a size has no masks."""
    sizes = {
        name: _prompts(split.untrained.by_size[name], own) | {"masks": own.masks}
        for name, own in split.trained.by_size.items()
    }
    return {**_prompts(split.untrained, split.trained), "by_size": sizes}


def _prompts(untrained: Scores | SizeScores, trained: Scores | SizeScores) -> dict[str, Any]:
    without_model = {
        "filled_box": _number(trained.filled_box),
        "filled_box_grid": _number(trained.filled_box_grid),
        "reachable": _number(trained.reachable),
    }
    values = {
        "box": (trained.box, untrained.box),
        "click1": (trained.clicks[1], untrained.clicks[1]),
    }
    return {
        prompt: {"trained": _number(after), "untrained": _number(before), **without_model}
        for prompt, (after, before) in values.items()
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
