"""Settings of the prompts in training, without torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PromptingConfig:
    """A box or clicks for each mask, drawn at every visit, and the rounds that follow.

    `drawn`: one prediction, from a box or 1..max_clicks clicks. `each`: a prediction after each of
    the first 1..max_clicks points, where a box counts as two and is followed by clicks (paper, 4.1:
    boxes and points; the released code's docstring). `interactive`: SAM's loop (appendix A): a box
    or a click, then clicks where the prediction is wrong, which is fed back as a mask prompt.

    The share of boxes is not in the paper; half and half is EfficientViT-SAM's.
    """

    rounds: Literal["drawn", "each", "interactive"] = "drawn"
    box_share: float = 0.5
    max_clicks: int = 6  # drawn and each
    first_click: Literal["random", "centre"] = "random"  # centre: farthest from the mask's edge
    corrections: int = 8  # interactive: clicks after the first prompt; SAM, appendix A
    repeats: int = 2  # interactive: rounds without a new point; one is the last; SAM, appendix A
    box_jitter: float = 0.1  # standard deviation over the side's length; SAM, appendix A
    box_jitter_max_px: float = 20.0  # SAM, appendix A

    def __post_init__(self) -> None:
        if not 0 <= self.box_share <= 1:
            raise ValueError(f"box_share={self.box_share} must lie in [0, 1]")
        least_of = {"max_clicks": 1, "corrections": 0, "repeats": 0}
        for name, least in (least_of | {"box_jitter": 0, "box_jitter_max_px": 0}).items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")

    def points(self) -> int:
        """Count the slots of the longest prompt; a box fills two."""
        if self.rounds == "interactive":
            return self.corrections + (2 if self.box_share > 0 else 1)
        return max(self.max_clicks, 2 if self.box_share > 0 else 1)

    def clicks(self) -> int:
        """Count the clicks that must have been drawn in a mask beforehand."""
        return 1 if self.rounds == "interactive" else self.max_clicks
