"""AdamW with its parameter groups."""

import re
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW

from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.optim.schedule import build_schedule

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
_FREE_TYPES = (nn.LayerNorm, nn.GroupNorm, nn.Embedding)
_FREE_NAMES = ("pos_embed", "cls_token")


@dataclass(frozen=True)
class _Group:
    """Parameters with the same settings."""

    lr_multiplier: float  # of the peak
    decays: bool
    named: tuple[tuple[str, nn.Parameter], ...]


def build_optimizer(module: nn.Module, config: OptimConfig) -> AdamW:
    """Build AdamW over the trainable parameters; `config.no_decay` says what does not decay.

    With `layer_decay` the learning rate of the image encoder's blocks falls towards the pixels;
    the patch embedding and the positions are one layer below the first block.
    """
    groups = [
        {
            "params": [parameter for _, parameter in group.named],
            "weight_decay": config.weight_decay if group.decays else 0.0,
            "lr": config.peak_lr * group.lr_multiplier,
        }
        for group in _grouped(module, config)
    ]
    return AdamW(groups, lr=config.peak_lr, betas=config.betas, fused=True)


def parameter_names(module: nn.Module, config: OptimConfig) -> list[str]:
    """List the names of `build_optimizer`'s parameters, in torch's order of indices."""
    return [name for group in _grouped(module, config) for name, _ in group.named]


def _grouped(module: nn.Module, config: OptimConfig) -> list[_Group]:
    """Parameter groups: with weight decay, then without, each from input to output layers."""
    named = list(module.named_parameters())
    above = 1 + max((_layer(name) or 0 for name, _ in named), default=0)
    plain = _norms(module) if config.no_decay == "norms" else _vectors(module)
    members: dict[tuple[bool, int], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            depth = _depth(_layer(name), above, config)
            members.setdefault((name in plain, depth), []).append((name, parameter))
    return [
        _Group(_multiplier(above - depth, config), not is_plain, tuple(members[is_plain, depth]))
        for is_plain, depth in sorted(members)
    ]


def _depth(layer: int | None, above: int, config: OptimConfig) -> int:
    """Depth that a parameter is grouped by: `above` for all that has the peak rate."""
    if layer is None or (config.layer_decay is None and config.backbone_multiplier == 1):
        return above
    return above - 1 if config.layer_decay is None else layer


def _multiplier(below: int, config: OptimConfig) -> float:
    """Learning rate over the peak, so many layers below the parts that have the peak."""
    if below == 0:
        return 1.0
    decay: float = (config.layer_decay or 1.0) ** below
    return config.backbone_multiplier * decay


def _vectors(module: nn.Module) -> set[str]:
    """Names without weight decay by MAE's rule: vectors, positions and tokens."""
    return {
        name
        for name, parameter in module.named_parameters()
        if parameter.ndim < 2 or any(pattern in name for pattern in _NO_DECAY)
    }


def _norms(module: nn.Module) -> set[str]:
    """Names without weight decay by detectron2's and Mask2Former's rule.

    It goes by exact types: their norm over the channels of a map is another one, and decays.
    """
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        for name, _ in part.named_parameters(recurse=False)
        if type(part) in _FREE_TYPES or name in _FREE_NAMES
    }


def _layer(name: str) -> int | None:
    """Layer of a parameter: 0 before the image encoder's blocks, n + 1 in block n, else None."""
    inside = name.partition("image_encoder.trunk.")[2]
    if not inside or inside.startswith("neck."):
        return None
    block = re.match(r"blocks\.(\d+)\.", inside)
    return 0 if block is None else int(block[1]) + 1


def optimizer_config(module: nn.Module, config: OptimConfig, total_steps: int) -> dict[str, Any]:
    """Build the return value of a LightningModule's `configure_optimizers`."""
    optimizer = build_optimizer(module, config)
    schedule = build_schedule(optimizer, config, total_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
