"""MAE's finetuning schedule: linear warm-up from zero, then decay to a floor."""

import math

from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from efficientsam_pl.optim.config import FlooredOptimConfig


def build_floored_schedule(
    optimizer: AdamW, config: FlooredOptimConfig, total_steps: int
) -> LambdaLR:
    """Build the schedule, which is stepped once an optimizer step."""
    return LambdaLR(optimizer, lambda step: floored_multiplier(step, config, total_steps))


def floored_multiplier(step: int | float, config: FlooredOptimConfig, total_steps: int) -> float:
    """Learning rate over its peak; MAE's is this at every step (util/lr_sched.py)."""
    if step < config.warmup_steps:
        return step / config.warmup_steps
    floor = config.min_lr / config.peak_lr
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    left = 1 - done if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return floor + (1 - floor) * left
