"""Finetuning's steps on a GPU: bf16, compiled blocks and mask decoder, 32 and 64 masks a photo.

Model, loss and optimizer alone: photos lie on the GPU already, and no trainer is around them.
"""

from functools import partial

import torch
from torch import Tensor

from benchmarks.finetune_steps import LESSON, PromptedStep, boxes_batch
from benchmarks.harness import Row
from benchmarks.sami_gpu import Fitted, largest_that_fits
from efficientsam_pl.models.config import NAMED, SegmenterConfig
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.training.flops import step_flops

_PEAK = 790e12  # FLOP/s in bf16, dense: of an H200 under load
_FIRST_BATCH = 1
_GOALS = {"efficient_sam_ti": 0.25, "efficient_sam_s": 0.35}


def measure() -> list[Row]:
    """Both students with 32 and 64 boxes a photo."""
    rows = []
    for name, goal in _GOALS.items():
        for masks in (32, 64):
            config = NAMED[name]
            found = largest_that_fits(partial(_step, config, masks), _FIRST_BATCH)
            row_id = f"finetune.gpu_{name.removeprefix('efficient_sam_')}_{masks}"
            rows += gpu_rows(
                row_id, f"{name}, {masks} boxes a photo", found, photo_flop(config, masks), goal
            )
    return rows


def photo_flop(config: SegmenterConfig, masks: int) -> int:
    """Of one photo in a training step, attention counted."""
    batch = boxes_batch(config.encoder.image_size, 1, masks)

    def loss(model: Segmenter, image: Tensor) -> Tensor:
        losses = LESSON.pieces(model, batch, model.encode(image))
        return torch.stack([values[0] for values in losses]).sum()

    return step_flops(partial(Segmenter, config), loss, config.encoder.image_size)


def gpu_rows(row_id: str, work: str, found: Fitted, flop: int, goal: float) -> list[Row]:
    """Share of the peak, photos a second and memory."""
    here = f"{work}, bf16, compiled, batch {found.batch}, {torch.cuda.get_device_name()}"
    return [
        Row(
            id=row_id,
            work=f"{here}; reference: {_PEAK / 1e12:.0f} TFLOP/s",
            value=found.batch * flop / found.seconds / 1e12,
            unit="TFLOP/s",
            reference=_PEAK / 1e12,
            goal=goal,
            better="higher",
        ),
        Row(
            id=f"{row_id}_images",
            work=here,
            value=found.batch / found.seconds,
            unit="images/s",
            better="higher",
        ),
        Row(
            id=f"{row_id}_memory",
            work=f"{here}; allocated at the peak",
            value=found.memory / 2**30,
            unit="GiB",
        ),
    ]


def _step(config: SegmenterConfig, masks: int, batch: int) -> PromptedStep:
    torch.manual_seed(0)
    return PromptedStep(Segmenter(config), batch, masks, "cuda")
