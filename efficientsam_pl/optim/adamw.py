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


@dataclass(frozen=True)
class _Group:
    """Parameters with the same settings."""

    lr_multiplier: float  # of the peak
    decays: bool
    named: tuple[tuple[str, nn.Parameter], ...]


def build_optimizer(module: nn.Module, config: OptimConfig) -> AdamW:
    """Build AdamW over the trainable parameters; `config.decayed` says which have weight decay.

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
    layer_decay, decays = config.layer_decay, _DECAYS[config.decayed]
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    above = 1 + max((_layer(name) or 0 for name, _ in module.named_parameters()), default=0)
    members: dict[tuple[bool, int], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in trained:
        plain = not decays(name, parameter)
        layer = _layer(name)
        depth = above if layer is None or layer_decay is None else layer
        members.setdefault((plain, depth), []).append((name, parameter))
    return [
        _Group((layer_decay or 1.0) ** (above - depth), not plain, tuple(members[plain, depth]))
        for plain, depth in sorted(members)
    ]


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and not any(pattern in name for pattern in _NO_DECAY)


def _decays_in_detectron2(name: str, parameter: nn.Parameter) -> bool:
    return not re.search(r"(^|\.)(pos_embed|cls_token)$|blocks\.\d+\.norm\d\.", name)


_DECAYS = {"matrices": _is_matrix, "detectron2": _decays_in_detectron2}  # by OptimConfig.decayed


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
