"""Toy recipes of both stages, as config keys only."""

from typing import Any

_ENCODER = {
    "width": 12,
    "depth": 1,
    "heads": 3,
    "image_size": 64,
    "position_grid": 4,
    "neck_channels": 16,
}
MODEL: dict[str, Any] = {
    "encoder": _ENCODER,
    "prompts": {
        "negative_clicks": True,
        "mask_prompts": True,
        "min_points": 6,
        "max_points": 12,
    },
    "decoder": {"depth": 1, "heads": 2, "mlp_width": 16, "iou_head_width": 16},
}
_COMMON: dict[str, Any] = {
    "optim": {"warmup_steps": 1, "peak_lr_batch": None, "peak_lr": 0.01},
    "data": {"workers": 0, "block_shards": 2},
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 4,
        "global_batch": 4,
        "micro_batch": 2,
        "validate_every_steps": 4,
        "checkpoint_every_steps": 4,
        "ema_decay": 0.5,
    },
    "run": {"trace": True, "seed": 7},
}
_TEACHER = {
    "encoder": {"width": 24, "depth": 1, "heads": 3, "global_blocks": [0], "neck_channels": 16},
    "image_size": 64,
    "precision": "fp32",
}
_MASKS = {"masks_per_image": 3, "clicks": 3, "max_area": 1.0}

PRETRAIN: dict[str, Any] = _COMMON | {
    "sami": {
        "student": _ENCODER,
        "decoder_depth": 1,
        "decoder_width": 16,
        "decoder_heads": 2,
    },
    "teacher": _TEACHER,
}
_FINETUNE: dict[str, Any] = _COMMON | {"masks": _MASKS, "validation": {"pictured": 0}}
DRAWN: dict[str, Any] = _FINETUNE | {"prompts": {"max_clicks": 3}}
EACH: dict[str, Any] = _FINETUNE | {
    "prompts": {"rounds": "each", "max_clicks": 3},
}
INTERACTIVE: dict[str, Any] = _FINETUNE | {
    "masks": _MASKS | {"decoded_at_once": 2},
    "prompts": {"rounds": "interactive", "corrections": 2, "repeats": 1},
}

# Command and config by the name under which losses are printed
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "pretrain": ("pretrain", PRETRAIN),
    "finetune_drawn": ("finetune", DRAWN),
    "finetune_each": ("finetune", EACH),
    "finetune_interactive": ("finetune", INTERACTIVE),
}
