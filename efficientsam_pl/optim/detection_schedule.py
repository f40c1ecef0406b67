"""detectron2's schedule: fvcore's warm-up into a decay that spans the whole run."""

import math

from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from efficientsam_pl.optim.config import DetectionOptimConfig

_STEP_FACTOR = 0.1  # at a milestone


def build_detection_schedule(
    optimizer: AdamW, config: DetectionOptimConfig, total_steps: int
) -> LambdaLR:
    """Build the schedule, which is stepped once an optimizer step."""
    return LambdaLR(optimizer, lambda step: detection_multiplier(step, config, total_steps))


def detection_multiplier(step: int, config: DetectionOptimConfig, total_steps: int) -> float:
    """Learning rate over its peak.

    The warm-up rises in a line to the value that the decay has at its end, not to 1 (fvcore).
    """
    if step >= config.warmup_steps:
        return _decay(step, config, total_steps)
    start = config.warmup_factor * _decay(0, config, total_steps)
    end = _decay(config.warmup_steps, config, total_steps)
    return start + (end - start) * step / config.warmup_steps


def _decay(step: int, config: DetectionOptimConfig, total_steps: int) -> float:
    if config.milestones:
        return _STEP_FACTOR ** sum(milestone <= step for milestone in config.milestones)
    done = min(step / total_steps, 1.0)
    return 1 - done if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
