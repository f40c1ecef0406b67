"""The learning-rate schedule: linear warm-up, then decay to zero."""

import math

from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from efficientsam_pl.optim.config import OptimConfig


def build_schedule(optimizer: AdamW, config: OptimConfig, total_steps: int) -> LambdaLR:
    """Build the schedule, which is stepped once an optimizer step."""
    return LambdaLR(optimizer, lambda step: lr_multiplier(step, config, total_steps))


def lr_multiplier(step: int, config: OptimConfig, total_steps: int) -> float:
    """Learning rate over its peak: linear warm-up, then decay to zero at `total_steps`."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    if config.decay == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * done))
