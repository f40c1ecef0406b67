"""Prompt samplers: prompts for a batch's masks, round by round; `PromptingConfig` names three.

Every tensor's shape follows from the config and the round's number, whatever the masks are: nothing
is recompiled and the device is never waited for.

Axes: b images, q masks an image, p point slots a prompt.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from efficientsam_pl.keyed_random import split_key, uniform
from efficientsam_pl.prompts.boxes import jitter_boxes, side_noise
from efficientsam_pl.prompts.clicks import centre_click, sample_point_from_errors
from efficientsam_pl.prompts.config import PromptingConfig
from efficientsam_pl.structures import Label, MaskBatch, MaskTargets, PreviousRound, Prompts


@dataclass(frozen=True)
class _BoxOrClicks:
    """Prompts each mask with a box or with clicks; the mask's key decides which.

    A box is written as two labelled corners, so that both kinds fit one tensor. `side` is that of
    the model's square in pixels.
    """

    config: PromptingConfig
    side: int

    def targets(self, batch: MaskBatch) -> MaskTargets:
        """Masks of the batch, each with a key and its clicks."""
        clicks = batch.clicks_px
        if self.config.first_click == "centre":
            centre = centre_click(batch.masks, self.side).to(clicks.dtype)
            clicks = torch.cat([centre[:, :, None], clicks[:, :, 1:]], dim=2)
        keys = split_key(batch.sample_key, batch.valid.shape[1])
        return MaskTargets(batch.masks, batch.boxes_xyxy_px, clicks, batch.valid, keys)

    def output_tokens(self, number: int) -> Literal["candidates", "single"]:
        """Use the candidates in every round, as with the released model."""
        return "candidates"

    def _corners(self) -> int:
        """Count the slots of the first prompt: a box takes two, where there are boxes."""
        return 2 if self.config.box_share > 0 else 1

    def _is_box(self, targets: MaskTargets) -> Bool[Tensor, "b q"]:
        return uniform(targets.sample_key, 1, "prompt-kind")[..., 0] < self.config.box_share

    def _first_points(
        self, targets: MaskTargets, count: Int64[Tensor, "b q"], slots: int
    ) -> Prompts:
        """First `count` points of each mask: its clicks, or its box's corners and clicks."""
        boxes = jitter_boxes(
            targets.boxes_xyxy_px,
            side_noise(targets.sample_key),
            self.config.box_jitter,
            self.config.box_jitter_max_px,
            self.side,
        )
        clicks = targets.clicks_px
        is_box = self._is_box(targets)[..., None]
        with_corners = torch.cat([boxes.unflatten(-1, (2, 2)), clicks], dim=2)
        points = torch.where(is_box[..., None], _slots(with_corners, slots), _slots(clicks, slots))
        slot = torch.arange(slots, device=clicks.device)
        labels = torch.where(is_box & (slot < 2), Label.TOP_LEFT + slot, Label.POSITIVE)
        given = slot < count[..., None]
        return Prompts(
            torch.where(given[..., None], points, -1.0), torch.where(given, labels, Label.PADDING)
        )


@dataclass(frozen=True)
class RandomPromptSampler(_BoxOrClicks):
    """A single round: a box, or a random number of clicks."""

    @property
    def rounds(self) -> int:
        """A single one."""
        return 1

    def sample(self, targets: MaskTargets, number: int, previous: PreviousRound | None) -> Prompts:
        """Sample a box, or 1..max_clicks clicks."""
        share = uniform(targets.sample_key, 1, "clicks-shown")[..., 0]
        clicks = 1 + (share * self.config.max_clicks).long()
        count = torch.where(self._is_box(targets), 2, clicks)
        return self._first_points(targets, count, self.config.points())


@dataclass(frozen=True)
class IncrementalClickSampler(_BoxOrClicks):
    """A prediction after each of the first points."""

    @property
    def rounds(self) -> int:
        """Number of points of the last round."""
        return self.config.max_clicks

    def sample(self, targets: MaskTargets, number: int, previous: PreviousRound | None) -> Prompts:
        """Give the first `number` + 1 points; a box is two, and complete in the first round too."""
        points = number + 1
        count = torch.where(self._is_box(targets), max(points, 2), points)
        return self._first_points(targets, count, max(points, self._corners()))


@dataclass(frozen=True)
class InteractiveSampler(_BoxOrClicks):
    """SAM's loop: a box or a click, then clicks where the prediction is wrong (SAM, appendix A).

    From the second round on the previous prediction is a mask prompt. Some rounds bring no new
    point: the last, and others at random places among each mask's corrections.
    """

    @property
    def rounds(self) -> int:
        """First prompt, corrections, and rounds without a new point."""
        return 1 + self.config.corrections + self.config.repeats

    def output_tokens(self, number: int) -> Literal["candidates", "single"]:
        """Use the candidates for an ambiguous first prompt, token 0 for several points."""
        return "candidates" if number == 0 else "single"

    def sample(self, targets: MaskTargets, number: int, previous: PreviousRound | None) -> Prompts:
        """Give the previous points, perhaps a new one, and the previous prediction."""
        first = self._corners()
        if previous is None:
            count = torch.where(self._is_box(targets), 2, 1)
            return self._first_points(targets, count, first)
        slots = first + min(number, self.config.corrections)
        points, labels = _slots(previous.prompts.points_px, slots), previous.prompts.labels
        labels = F.pad(labels, (0, slots - labels.shape[-1]), value=int(Label.PADDING))
        adds = self._adds(targets.sample_key)
        place = first + adds[..., :number].sum(-1) - 1
        slot = torch.arange(slots, device=labels.device)
        here = adds[..., number - 1, None] & (slot == place[..., None])
        click, label = sample_point_from_errors(
            targets.masks, previous.mask_logits, targets.sample_key, number, self.side
        )
        return Prompts(
            torch.where(here[..., None], click[:, :, None].to(points.dtype), points),
            torch.where(here, label[..., None], labels),
            mask_logits=previous.mask_logits,
        )

    def _adds(self, sample_key: Int64[Tensor, "b q"]) -> Bool[Tensor, "b q rounds"]:
        """Draw whether the second and every later round brings a new point."""
        last = min(self.config.repeats, 1)
        between = self.config.corrections + self.config.repeats - last
        ranks = uniform(sample_key, between, "repeats").argsort(stable=True, dim=-1).argsort(dim=-1)
        adds = ranks >= self.config.repeats - last
        return F.pad(adds, (0, last), value=False)


def build_prompt_sampler(
    config: PromptingConfig, side: int
) -> RandomPromptSampler | IncrementalClickSampler | InteractiveSampler:
    """Build the prompt sampler of `config.rounds` for a model of `side` pixels."""
    if config.rounds == "drawn":
        return RandomPromptSampler(config, side)
    return (IncrementalClickSampler if config.rounds == "each" else InteractiveSampler)(
        config, side
    )


def _slots(points: Float[Tensor, "b q p 2"], slots: int) -> Float[Tensor, "b q slots 2"]:
    """First points, padded with -1."""
    return F.pad(points[:, :, :slots], (0, 0, 0, max(slots - points.shape[2], 0)), value=-1.0)
