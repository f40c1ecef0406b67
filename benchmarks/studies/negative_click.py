"""Effect of a negative click on the surplus of a box's prediction."""

from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.studies.finetune_runs import images_of
from efficientsam_pl.inference.predictor import Predictor
from efficientsam_pl.keyed_random import sample_key, uniform
from efficientsam_pl.mask_coverage import half_covered
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.prompts.clicks import uniform_click
from efficientsam_pl.rle import boxes_xyxy, run_lengths
from efficientsam_pl.structures import Label, Prompts


@dataclass(frozen=True)
class Shrunk:
    """Mean cells of the predictions before and after the click, and how often it had effect."""

    corrected: int
    before: float
    after: float
    obeyed: float


@torch.inference_mode()
def negative_click(model: Segmenter, pattern: str) -> Shrunk | None:
    """Click at random on the surplus of each prediction for a tight box.

    The box stays, the prediction is the mask prompt, and token 0 is the output, as in SAM's loop.
    None if no prediction has surplus.
    """
    before, after, obeyed = [], [], []
    side = model.config.encoder.image_size
    for photo in images_of(pattern):
        embedded = Predictor(model).embed(photo.image)
        boxes = torch.from_numpy(boxes_xyxy(photo.truth)).float()
        corners = embedded.resize.boxes_forward(boxes)
        prompts = Prompts.of_boxes(corners[None])
        first = model.decode(embedded.features, prompts).candidates().best()
        logits = first.low_res_logits[0, :, 0]
        cells = logits.shape[-1]
        grid = embedded.resize.mask_grid(cells)
        truth = torch.from_numpy(half_covered(run_lengths(photo.truth), grid))
        for number, (mask_logits_of_box, real) in enumerate(zip(logits, truth, strict=True)):
            surplus = (mask_logits_of_box > 0) & ~real
            if not surplus.any():
                continue
            key = torch.tensor(sample_key(0, 0, f"{photo.key}/{number}"))
            click = uniform_click(surplus, uniform(key, 1, "negative")[0], side)
            corrected = Prompts(
                torch.cat([corners[number].view(2, 2), click[None]])[None, None],
                torch.tensor([[[Label.TOP_LEFT, Label.BOTTOM_RIGHT, Label.NEGATIVE]]]),
                mask_logits=mask_logits_of_box[None, None],
            )
            again = model.decode(embedded.features, corrected).single().low_res_logits[0, 0, 0] > 0
            column, row = ((click + 0.5) * cells / side).long().tolist()
            before.append(int((mask_logits_of_box > 0).sum()))
            after.append(int(again.sum()))
            obeyed.append(not bool(again[row, column]))
    if not before:
        return None
    return Shrunk(len(before), _mean(before), _mean(after), _mean(obeyed))


def _mean(values: list[int] | list[bool]) -> float:
    return float(np.mean(values))
