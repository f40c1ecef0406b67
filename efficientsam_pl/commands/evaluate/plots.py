"""Pictures of an evaluation, beside its result."""

from pathlib import Path

import numpy as np

from efficientsam_pl.commands.evaluate.result import Merged
from efficientsam_pl.evaluation.metrics.matching import RECALLS, THRESHOLDS, curves, matched
from efficientsam_pl.plural import counted
from efficientsam_pl.visualization.evaluation_plots import iou_histogram, precision_recall


def draw(merged: Merged, out: Path) -> None:
    """Draws `OUT_iou` and, where there is AP, `OUT_precision`.

    Args:
        merged: What is drawn.
        out: Of the result, OUT.json.
    """
    told = merged.result
    name = f"{told.model['name']} on {told.data['kind']}, {counted(told.counts['photos'], 'photo')}"
    ious = {protocol: np.array(values) for protocol, values in merged.ious.items()}
    if ious:
        iou_histogram(name, ious).write(out.with_name(f"{out.stem}_iou"))
    if merged.overlaps:
        found = curves(matched(merged.overlaps), merged.categories)
        drawn = precision_recall(name, found.precision[:, 0], THRESHOLDS, RECALLS)
        drawn.write(out.with_name(f"{out.stem}_precision"))
