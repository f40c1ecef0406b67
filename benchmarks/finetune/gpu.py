"""Finetuning steps on a GPU: bf16, compiled blocks and mask decoder, 32 and 64 masks per image.

Model, loss and optimizer only: images are already on the GPU, and there is no trainer.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.finetune.timed_step import PROMPT_LOOP, PromptedStep, boxes_batch
from benchmarks.harness import Row
from benchmarks.sami.gpu import gpu_rows, largest_that_fits
from efficientsam_pl.models.config import NAMED, SegmenterConfig
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.training.flops import step_flops

PEAK = (790e12, "790 TFLOP/s, dense bf16 on an H200 under load")
_FIRST_BATCH = 1
_GOALS = {"efficient_sam_ti": 0.25, "efficient_sam_s": 0.35}


def measure() -> Iterator[Row]:
    """Measure both students with 32 and 64 boxes per image."""
    for name, goal in _GOALS.items():
        for masks in (32, 64):
            config = NAMED[name]
            fitted = largest_that_fits(partial(_step, config, masks), _FIRST_BATCH)
            row_id = f"finetune.gpu_{name.removeprefix('efficient_sam_')}_{masks}"
            work, flop = f"{name}, {masks} boxes per image", image_flop(config, masks)
            yield from gpu_rows(row_id, work, fitted, flop, PEAK, goal)


def image_flop(config: SegmenterConfig, masks: int) -> int:
    """Count the FLOPs of one image in a training step, including attention."""
    batch = boxes_batch(config.encoder.image_size, 1, masks)

    def loss(model: Segmenter, image: Tensor) -> Tensor:
        return PROMPT_LOOP.loss_for_flops(model, model.encode(image), batch)

    return step_flops(partial(Segmenter, config), loss, config.encoder.image_size)


def _step(config: SegmenterConfig, masks: int, batch: int) -> PromptedStep:
    torch.manual_seed(0)
    return PromptedStep(Segmenter(config), batch, masks, "cuda")
