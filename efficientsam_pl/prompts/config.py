"""Which prompts a mask is trained with, without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PromptMixConfig:
    """A box or some clicks for each mask, drawn anew every time (paper, 4.1: boxes and points).

    The shares are not in the paper; half and half is EfficientViT-SAM's.
    """

    box_share: float = 0.5
    max_clicks: int = 6  # a mask prompted by clicks gets 1..max_clicks of them
    box_jitter: float = 0.1  # standard deviation over the side's length; SAM, appendix A
    box_jitter_max_px: float = 20.0  # SAM, appendix A

    def __post_init__(self) -> None:
        if not 0 <= self.box_share <= 1:
            raise ValueError(f"box_share={self.box_share} must lie in [0, 1]")
        if self.max_clicks < 1:
            raise ValueError(f"max_clicks={self.max_clicks} must be at least 1")
