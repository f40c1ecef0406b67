"""Mask2Former's schedule: polynomial decay to zero, after a linear warm-up if one is wanted."""

from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from efficientsam_pl.optim.config import PolyOptimConfig


def build_poly_schedule(optimizer: AdamW, config: PolyOptimConfig, total_steps: int) -> LambdaLR:
    """Build the schedule, which is stepped once an optimizer step."""
    return LambdaLR(optimizer, lambda step: poly_multiplier(step, config, total_steps))


def poly_multiplier(step: int, config: PolyOptimConfig, total_steps: int) -> float:
    """Learning rate over its peak (Mask2Former, WarmupPolyLR): the decay runs from step 0."""
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    # Lightning steps the schedule once more after the last optimizer step
    left: float = max(0.0, 1 - step / total_steps) ** config.power
    return warm * left
