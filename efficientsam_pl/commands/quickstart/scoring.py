"""Scores of the quickstart: a split before and after training, and the bounds without a model."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

from rich.progress import track

from efficientsam_pl.data.datasets.image_sources import PackedImages
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.evaluation.config import ValidationConfig
from efficientsam_pl.evaluation.evaluator import validation_evaluator
from efficientsam_pl.evaluation.prompt_metrics import ImageScores, Scores, SizeScores
from efficientsam_pl.inference.evaluator_adapter import EvaluatorModel
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.records import CorruptSample


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
    untrained, trained = (_score(model, pattern, seed, most) for model in models)
    return Split(untrained, trained)


def _score(model: Segmenter, pattern: str, seed: int, most: int | None) -> Scores:
    """Score a model as the validation of training does."""
    images, config = PackedImages(open_shards(pattern)), ValidationConfig(clicks=(1,))
    evaluator = validation_evaluator(EvaluatorModel(model), config, seed)
    scores = ImageScores(config)
    places = images.numbers[:most]
    for place in track(places, "Scoring", transient=True, disable=not sys.stdout.isatty()):
        read = images.read(place)
        if isinstance(read, CorruptSample):
            scores.add_damaged(1)
        else:
            scores.add(evaluator.evaluate(place, read.image, read.about), read.about)
    return scores.compute()


def split_metrics(split: Split) -> dict[str, Any]:
    """Collect the numbers of `metrics.json` for one split; null where a size has no masks."""
    sizes = {
        name: _prompts(split.untrained.by_size[name], part) | {"masks": part.masks}
        for name, part in split.trained.by_size.items()
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
