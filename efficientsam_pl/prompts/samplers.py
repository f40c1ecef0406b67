"""Prompt samplers: prompts for a batch's masks, round by round; `PromptingConfig` names three.

Everything that no prediction decides is drawn once a batch, for all rounds together. Every tensor's
shape follows from the config and the round's number, whatever the masks are: nothing is recompiled
and the device is never waited for.

Axes: b images, q masks an image, r rounds, p points, slots of a prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from efficientsam_pl.keyed_random import split_key, uniform
from efficientsam_pl.prompts.boxes import jitter_boxes, side_noise
from efficientsam_pl.prompts.clicks import centre_click, sample_point_from_errors
from efficientsam_pl.prompts.config import PromptingConfig
from efficientsam_pl.structures import (
    Label,
    MaskBatch,
    MaskTargets,
    PreviousRound,
    Prompts,
    PromptSampler,
    Region,
    RoundGroup,
)


@dataclass(frozen=True)
class _DrawnTargets(MaskTargets):
    """Masks with the prompts of the rounds that no prediction decides."""

    points_px: Float[Tensor, "b q r slots 2"]
    labels: Int64[Tensor, "b q r slots"]


@dataclass(eq=False)
class _BoxOrClicks:
    """Prompts each mask with a box or with clicks; the mask's key decides which.

    A box is written as two labelled corners, so that both kinds fit one tensor. `side` is that of
    the model's square in pixels. Prompts are padded to `padded_length`, to which the model would
    pad them itself: rounds of equal length may be decoded together, and need one compiled form.
    """

    config: PromptingConfig
    side: int
    padded_length: int = 0
    _record: ClassVar[type[_DrawnTargets]] = _DrawnTargets

    def targets(self, batch: MaskBatch) -> _DrawnTargets:
        """Masks of the batch, each with a key, its clicks, and what is drawn for it."""
        clicks = batch.clicks_px
        if self.config.first_click == "centre":
            centre = centre_click(batch.masks, self.side).to(clicks.dtype)
            clicks = torch.cat([centre[:, :, None], clicks[:, :, 1:]], dim=2)
        drawn = self.draw(batch.sample_key, batch.boxes_xyxy_px, clicks)
        return self._record(batch.masks, batch.boxes_xyxy_px, clicks, batch.valid, **drawn)

    @torch.no_grad()
    def draw(
        self,
        sample_key: Int64[Tensor, "b"],
        boxes_xyxy_px: Float[Tensor, "b q 4"],
        clicks_px: Float[Tensor, "b q p 2"],
    ) -> dict[str, Tensor]:
        """Draw the fields that the sampler's targets have beside the masks."""
        keys = split_key(sample_key, boxes_xyxy_px.shape[1])
        is_box = uniform(keys, 1, "prompt-kind")[..., 0] < self.config.box_share
        points, labels = self._first_points(keys, is_box, boxes_xyxy_px, clicks_px)
        slot = torch.arange(labels.shape[-1], device=labels.device)
        given = slot < self._counts(keys, is_box)[..., None]
        return {
            "sample_key": keys,
            "points_px": torch.where(given[..., None], points[:, :, None], -1.0),
            "labels": torch.where(given, labels[:, :, None], Label.PADDING),
        }

    def output_tokens(self, number: int) -> Literal["candidates", "single"]:
        """Use the candidates in every round, as with the released model."""
        return "candidates"

    def regions(self) -> list[Region]:
        """List what is compiled as a whole: all draws of a batch."""
        return [Region(self, "draw")]

    def _counts(
        self, keys: Int64[Tensor, "b q"], is_box: Bool[Tensor, "b q"]
    ) -> Int64[Tensor, "b q r"]:
        """Count the first points that each drawn round shows; a box is two."""
        raise NotImplementedError

    def _corners(self) -> int:
        """Count the slots of the first prompt: a box takes two, where there are boxes."""
        return 2 if self.config.box_share > 0 else 1

    def _padded(self, slots: int) -> int:
        return max(slots, self.padded_length)

    def _first_points(
        self,
        keys: Int64[Tensor, "b q"],
        is_box: Bool[Tensor, "b q"],
        boxes_xyxy_px: Float[Tensor, "b q 4"],
        clicks_px: Float[Tensor, "b q clicks 2"],
    ) -> tuple[Float[Tensor, "b q p 2"], Int64[Tensor, "b q p"]]:
        """Fill all slots with the mask's clicks, or with its box's corners and clicks."""
        config, slots = self.config, self._padded(self.config.points())
        noise = side_noise(keys)
        boxes = jitter_boxes(
            boxes_xyxy_px, noise, config.box_jitter, config.box_jitter_max_px, self.side
        )
        with_corners = torch.cat([boxes.unflatten(-1, (2, 2)), clicks_px], dim=2)
        is_box = is_box[..., None]
        points = torch.where(
            is_box[..., None], _slots(with_corners, slots), _slots(clicks_px, slots)
        )
        slot = torch.arange(slots, device=points.device)
        return points, torch.where(is_box & (slot < 2), Label.TOP_LEFT + slot, Label.POSITIVE)


@dataclass(eq=False)
class RandomPromptSampler(_BoxOrClicks):
    """A single round: a box, or a random number of clicks."""

    @property
    def rounds(self) -> int:
        """A single one."""
        return 1

    def groups(self) -> list[RoundGroup]:
        """List the only round."""
        return [RoundGroup(range(1))]

    def sample(self, targets: MaskTargets, number: int, previous: PreviousRound | None) -> Prompts:
        """Give a box, or 1..max_clicks clicks."""
        assert isinstance(targets, _DrawnTargets)
        return Prompts(targets.points_px[:, :, 0], targets.labels[:, :, 0])

    def _counts(
        self, keys: Int64[Tensor, "b q"], is_box: Bool[Tensor, "b q"]
    ) -> Int64[Tensor, "b q r"]:
        clicks = 1 + (uniform(keys, 1, "clicks-shown") * self.config.max_clicks).long()
        return torch.where(is_box[..., None], 2, clicks)


@dataclass(eq=False)
class IncrementalClickSampler(_BoxOrClicks):
    """A prediction after each of the first points; all rounds are independent."""

    @property
    def rounds(self) -> int:
        """Number of points of the last round."""
        return self.config.max_clicks

    def groups(self) -> list[RoundGroup]:
        """List successive rounds with prompts of equal length together."""
        by_length = groupby(range(self.rounds), self._length)
        rounds = [list(numbers) for _, numbers in by_length]
        return [RoundGroup(range(numbers[0], numbers[-1] + 1)) for numbers in rounds]

    def sample(self, targets: MaskTargets, number: int, previous: PreviousRound | None) -> Prompts:
        """Give the first `number` + 1 points; a box is two, and complete in the first round too."""
        assert isinstance(targets, _DrawnTargets)
        slots = self._length(number)
        return Prompts(
            targets.points_px[:, :, number, :slots], targets.labels[:, :, number, :slots]
        )

    def _length(self, number: int) -> int:
        return self._padded(max(number + 1, self._corners()))

    def _counts(
        self, keys: Int64[Tensor, "b q"], is_box: Bool[Tensor, "b q"]
    ) -> Int64[Tensor, "b q r"]:
        points = torch.arange(1, self.rounds + 1, device=keys.device)
        return torch.where(is_box[..., None], points.clamp(min=2), points)


@dataclass(frozen=True)
class _InteractiveTargets(_DrawnTargets):
    """Masks with their first prompts, and how each later round corrects them, if it does.

    `place` is the slot of the round's new point, or -1 where there is none. `share` chooses the
    point among the errors.
    """

    place: Int64[Tensor, "b q later"]
    share: Float[Tensor, "b q later"]


@dataclass(eq=False)
class InteractiveSampler(_BoxOrClicks):
    """SAM's loop: a box or a click, then clicks where the prediction is wrong (SAM, appendix A).

    From the second round on the previous prediction is a mask prompt. Some rounds bring no new
    point: the last, and others at random places among each mask's corrections.
    """

    _record: ClassVar[type[_DrawnTargets]] = _InteractiveTargets

    @property
    def rounds(self) -> int:
        """First prompt, corrections, and rounds without a new point."""
        return 1 + self.config.corrections + self.config.repeats

    def groups(self) -> list[RoundGroup]:
        """List every round on its own, since it corrects the one before."""
        last = self.rounds - 1
        return [RoundGroup(range(n, n + 1), corrected=n < last) for n in range(self.rounds)]

    def output_tokens(self, number: int) -> Literal["candidates", "single"]:
        """Use the candidates for an ambiguous first prompt, token 0 for several points."""
        return "candidates" if number == 0 else "single"

    def regions(self) -> list[Region]:
        """List what is compiled as a whole: all draws of a batch, and a correction."""
        return [*super().regions(), Region(self, "correct")]

    @torch.no_grad()
    def draw(
        self,
        sample_key: Int64[Tensor, "b"],
        boxes_xyxy_px: Float[Tensor, "b q 4"],
        clicks_px: Float[Tensor, "b q p 2"],
    ) -> dict[str, Tensor]:
        """Draw first prompts, the rounds that bring a new point, and the points' places."""
        drawn = super().draw(sample_key, boxes_xyxy_px, clicks_px)
        keys, later = drawn["sample_key"], self.rounds - 1
        adds = self._adds(keys)
        place = torch.where(adds, self._corners() - 1 + adds.cumsum(-1), -1)
        shares = [uniform(keys, 1, f"correction-{n}") for n in range(1, later + 1)]
        share = torch.cat(shares, dim=-1) if shares else place.float()
        return drawn | {"place": place, "share": share}

    def sample(self, targets: MaskTargets, number: int, previous: PreviousRound | None) -> Prompts:
        """Give the previous points, perhaps a new one, and the previous prediction."""
        assert isinstance(targets, _InteractiveTargets)
        slots = self._padded(self._corners() + min(number, self.config.corrections))
        if previous is None:
            return Prompts(targets.points_px[:, :, 0, :slots], targets.labels[:, :, 0, :slots])
        before, most = previous.prompts, targets.labels.shape[-1]
        missing = most - before.labels.shape[-1]  # one compiled form serves all rounds
        points, labels = self.correct(
            _slots(before.points_px, most),
            F.pad(before.labels, (0, missing), value=int(Label.PADDING)),
            targets.masks,
            previous.mask_logits,
            targets.place[..., number - 1],
            targets.share[..., number - 1],
        )
        return Prompts(points[:, :, :slots], labels[:, :, :slots], mask_logits=previous.mask_logits)

    @torch.no_grad()
    def correct(
        self,
        points_px: Float[Tensor, "b q p 2"],
        labels: Int64[Tensor, "b q p"],
        masks: Bool[Tensor, "b q h w"],
        mask_logits: Float[Tensor, "b q h w"],
        place: Int64[Tensor, "b q"],
        share: Float[Tensor, "b q"],
    ) -> tuple[Float[Tensor, "b q p 2"], Int64[Tensor, "b q p"]]:
        """Write a click on an error of the prediction to the slot `place`, unless that is -1."""
        click, label = sample_point_from_errors(masks, mask_logits, share, self.side)
        here = torch.arange(labels.shape[-1], device=labels.device) == place[..., None]
        return (
            torch.where(here[..., None], click[:, :, None].to(points_px.dtype), points_px),
            torch.where(here, label[..., None], labels),
        )

    def _counts(
        self, keys: Int64[Tensor, "b q"], is_box: Bool[Tensor, "b q"]
    ) -> Int64[Tensor, "b q r"]:
        return torch.where(is_box, 2, 1)[..., None]

    def _adds(self, sample_key: Int64[Tensor, "b q"]) -> Bool[Tensor, "b q rounds"]:
        """Draw whether the second and every later round brings a new point."""
        last = min(self.config.repeats, 1)
        between = self.config.corrections + self.config.repeats - last
        ranks = uniform(sample_key, between, "repeats").argsort(stable=True, dim=-1).argsort(dim=-1)
        adds = ranks >= self.config.repeats - last
        return F.pad(adds, (0, last), value=False)


def build_prompt_sampler(
    config: PromptingConfig, side: int, padded_length: int = 0
) -> PromptSampler:
    """Build the prompt sampler of `config.rounds`, which samples for targets that it has made.

    Args:
        config: Kinds and numbers of prompts.
        side: The model's square in pixels.
        padded_length: Length to which the model pads shorter prompts; 0: it does not.
    """
    kinds: dict[str, Callable[..., Any]] = {
        "drawn": RandomPromptSampler,
        "each": IncrementalClickSampler,
        "interactive": InteractiveSampler,
    }
    sampler: PromptSampler = kinds[config.rounds](config, side, padded_length)
    return sampler


def _slots(points: Float[Tensor, "b q p 2"], slots: int) -> Float[Tensor, "b q slots 2"]:
    """First points, padded with -1."""
    return F.pad(points[:, :, :slots], (0, 0, 0, max(slots - points.shape[2], 0)), value=-1.0)
