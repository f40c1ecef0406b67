"""Plots of an evaluation, next to its result."""

from pathlib import Path

import numpy as np

from efficientsam_pl.commands.evaluate.result import Merged
from efficientsam_pl.evaluation.metrics.matching import RECALLS, THRESHOLDS, curves, matched
from efficientsam_pl.plural import counted
from efficientsam_pl.visualization.evaluation_plots import iou_histogram, precision_recall


def draw(merged: Merged, out: Path) -> None:
    """Draw `OUT_iou` and, where there is AP, `OUT_precision`.

    Args:
        merged: The result and its values.
        out: The result's file, OUT.json.
    """
    result = merged.result
    images = counted(result.counts["photos"], "photo")
    name = f"{result.model['name']} on {result.data['kind']}, {images}"
    ious = {protocol: np.array(values) for protocol, values in merged.ious.items()}
    if ious:
        iou_histogram(name, ious).write(out.with_name(f"{out.stem}_iou"))
    if merged.overlaps:
        curve = curves(matched(merged.overlaps), merged.categories)
        plot = precision_recall(name, curve.precision[:, 0], THRESHOLDS, RECALLS)
        plot.write(out.with_name(f"{out.stem}_precision"))
