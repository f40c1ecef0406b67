"""A step of finetuning to be timed: fresh weights, the same images and masks at every step."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.optim.adamw import build_optimizer
from efficientsam_pl.optim.config import finetune_optim
from efficientsam_pl.recipes.promptable.prompt_loop import PromptLoop
from efficientsam_pl.structures import (
    MaskBatch,
    MaskTargets,
    PreviousRound,
    Prompts,
    Region,
    RoundGroup,
)
from efficientsam_pl.training.compilation import apply_compile


@dataclass(frozen=True)
class BoxPromptSampler:
    """Prompts for each mask once, by its box."""

    rounds: int = 1

    def targets(self, batch: MaskBatch) -> MaskTargets:
        """Use all masks, without sampling."""
        keys = batch.sample_key[:, None].expand(batch.valid.shape)
        return MaskTargets(batch.masks, batch.boxes_xyxy_px, batch.clicks_px, batch.valid, keys)

    def groups(self) -> list[RoundGroup]:
        """List the only round."""
        return [RoundGroup(range(1))]

    def sample(self, targets: MaskTargets, number: int, previous: PreviousRound | None) -> Prompts:
        """Give the boxes as they are."""
        return Prompts.of_boxes(targets.boxes_xyxy_px)

    def output_tokens(self, number: int) -> Literal["candidates", "single"]:
        """Use the candidates, since a box is ambiguous."""
        return "candidates"

    def regions(self) -> list[Region]:
        """List nothing: boxes are given as they are."""
        return []


PROMPT_LOOP = PromptLoop(BoxPromptSampler(), MaskLossConfig())


class PromptedStep:
    """Forward, loss, backward and AdamW's step on a batch of boxes."""

    def __init__(
        self, model: Segmenter, batch: int, masks: int, device: Literal["cpu", "cuda"] = "cpu"
    ) -> None:
        """Set up a step in float32 on the CPU, in bf16 with compiled blocks and heads on a GPU."""
        self.model = model.to(device).train()
        self._batch = boxes_batch(model.config.encoder.image_size, batch, masks).to(device)
        self._optimizer = build_optimizer(self.model, finetune_optim())
        self._precision: AbstractContextManager[object] = nullcontext()
        if device == "cuda":
            self._precision = torch.autocast("cuda", torch.bfloat16)
            apply_compile(self.model)

    def __call__(self) -> None:
        """Take a step."""
        with self._precision:
            features = self.model.encode(self._batch.image, self._batch.content_hw)
            losses = PROMPT_LOOP.losses(self.model, features, self._batch)
        losses.total.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


def boxes_batch(side: int, batch: int, masks: int) -> MaskBatch:
    """Draw images whose masks fill their boxes, at a quarter of the image's size."""
    draw = torch.Generator().manual_seed(0)
    low = side // 4
    corners = torch.randint(0, low // 2, (batch, masks, 2), generator=draw)
    sides = torch.randint(low // 8, low // 2, (batch, masks, 2), generator=draw)
    boxes = torch.cat([corners, corners + sides], dim=-1)
    cell = torch.arange(low)
    across, down = (
        (cell >= boxes[..., axis, None]) & (cell < boxes[..., axis + 2, None]) for axis in (0, 1)
    )
    return MaskBatch(
        image=torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=draw),
        content_hw=torch.full((batch, 2), side),
        masks=down[..., :, None] & across[..., None, :],
        boxes_xyxy_px=4.0 * boxes,
        clicks_px=torch.zeros(batch, masks, 0, 2),
        valid=torch.ones(batch, masks, dtype=torch.bool),
        sample_key=torch.arange(batch),
        key=tuple(str(number) for number in range(batch)),
    )
