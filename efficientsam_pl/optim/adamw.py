"""AdamW with its parameter groups, and the learning rate's course."""

import math
from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from efficientsam_pl.optim.config import OptimConfig

_NO_DECAY = (
    "pos_embed",
    "cls_token",
    "position",
    "mask_token",  # SAMI's own and the mask decoder's, not the attention "token_to_image"
    "iou_token",
    "label_vectors",
    "no_mask_embed",
    "rel_pos",
)


def build_optimizer(module: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW over the parameters that learn; no decay on norms, biases, positions and tokens."""
    decayed, kept = _grouped(module)
    groups = [
        {"params": list(decayed.values()), "weight_decay": config.weight_decay},
        {"params": list(kept.values()), "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.peak_lr, betas=config.betas, fused=True)


def parameter_names(module: nn.Module) -> list[str]:
    """Of the parameters of `build_optimizer`, in the order in which torch numbers them."""
    return [name for group in _grouped(module) for name in group]


def _grouped(module: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Parameters that decay and parameters that do not."""
    decayed: dict[str, nn.Parameter] = {}
    kept: dict[str, nn.Parameter] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or any(part in name for part in _NO_DECAY)
            (kept if plain else decayed)[name] = parameter
    return decayed, kept


def build_schedule(optimizer: AdamW, config: OptimConfig, total_steps: int) -> LambdaLR:
    """The schedule as torch steps it, once an optimizer step."""
    return LambdaLR(optimizer, lambda step: lr_share(step, config, total_steps))


def lr_share(step: int, config: OptimConfig, total_steps: int) -> float:
    """The learning rate over its peak: linear warm-up, then decay to zero at `total_steps`."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    if config.decay == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * done))


def lightning_form(module: nn.Module, config: OptimConfig, total_steps: int) -> dict[str, Any]:
    """What a LightningModule's configure_optimizers returns."""
    optimizer = build_optimizer(module, config)
    schedule = build_schedule(optimizer, config, total_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
