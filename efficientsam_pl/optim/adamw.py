"""AdamW with its parameter groups, and the learning rate's course."""

import math
import re
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Group:
    """Parameters that learn alike."""

    lr_multiplier: float  # of the peak
    decays: bool
    named: tuple[tuple[str, nn.Parameter], ...]


def build_optimizer(module: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW over the parameters that learn; no decay on norms, biases, positions and tokens.

    With `layer_decay` the image encoder's blocks learn the slower the nearer to the pixels they
    are; the patch embedding and the positions are one layer below the first block.
    """
    groups = [
        {
            "params": [parameter for _, parameter in group.named],
            "weight_decay": config.weight_decay if group.decays else 0.0,
            "lr": config.peak_lr * group.lr_multiplier,
        }
        for group in _grouped(module, config.layer_decay)
    ]
    return AdamW(groups, lr=config.peak_lr, betas=config.betas, fused=True)


def parameter_names(module: nn.Module, config: OptimConfig) -> list[str]:
    """Of the parameters of `build_optimizer`, in the order in which torch numbers them."""
    return [name for group in _grouped(module, config.layer_decay) for name, _ in group.named]


def _grouped(module: nn.Module, layer_decay: float | None) -> list[_Group]:
    """What decays before what does not; of each the lowest layer first."""
    learning = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    above = 1 + max((_layer(name) or 0 for name, _ in module.named_parameters()), default=0)
    members: dict[tuple[bool, int], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in learning:
        plain = parameter.ndim < 2 or any(part in name for part in _NO_DECAY)
        layer = _layer(name)
        depth = above if layer is None or layer_decay is None else layer
        members.setdefault((plain, depth), []).append((name, parameter))
    return [
        _Group((layer_decay or 1.0) ** (above - depth), not plain, tuple(members[plain, depth]))
        for plain, depth in sorted(members)
    ]


def _layer(name: str) -> int | None:
    """0 for what comes before the image encoder's blocks, n + 1 for block n; None for the rest."""
    inside = name.partition("image_encoder.trunk.")[2]
    if not inside or inside.startswith("neck."):
        return None
    block = re.match(r"blocks\.(\d+)\.", inside)
    return 0 if block is None else int(block[1]) + 1


def build_schedule(optimizer: AdamW, config: OptimConfig, total_steps: int) -> LambdaLR:
    """The schedule as torch steps it, once an optimizer step."""
    return LambdaLR(optimizer, lambda step: lr_multiplier(step, config, total_steps))


def lr_multiplier(step: int, config: OptimConfig, total_steps: int) -> float:
    """The learning rate over its peak: linear warm-up, then decay to zero at `total_steps`."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    if config.decay == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * done))


def optimizer_config(module: nn.Module, config: OptimConfig, total_steps: int) -> dict[str, Any]:
    """What a LightningModule's configure_optimizers returns."""
    optimizer = build_optimizer(module, config)
    schedule = build_schedule(optimizer, config, total_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
