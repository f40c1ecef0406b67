"""Which key of a config was meant by one that is none."""

import difflib
from collections.abc import Sequence

# What other programs call a key of ours, by the last part of its name
ALIASES = {
    "lr": "peak_lr",
    "learning_rate": "peak_lr",
    "base_lr": "peak_lr",
    "max_lr": "peak_lr",
    "wd": "weight_decay",
    "warmup": "warmup_steps",
    "lr_schedule": "decay",
    "lr_scheduler": "decay",
    "scheduler": "decay",
    "schedule": "decay",
    "grad_clip": "clip_norm",
    "gradient_clip_val": "clip_norm",
    "max_grad_norm": "clip_norm",
    "batch": "global_batch",
    "batch_size": "global_batch",
    "bs": "global_batch",
    "micro_batch_size": "micro_batch",
    "per_device_batch_size": "micro_batch",
    "epochs": "max_steps",  # lengths are steps
    "max_epochs": "max_steps",
    "num_epochs": "max_steps",
    "steps": "max_steps",
    "num_steps": "max_steps",
    "iterations": "max_steps",
    "iters": "max_steps",
    "max_iters": "max_steps",
    "num_workers": "workers",
    "gpus": "devices",
    "num_gpus": "devices",
    "num_nodes": "nodes",
    "device": "accelerator",
    "amp": "precision",
    "dtype": "precision",
    "fp16": "precision",
    "bf16": "precision",
    "ema": "ema_decay",
    "val_every": "validate_every_steps",
    "eval_every": "validate_every_steps",
    "val_check_interval": "validate_every_steps",
    "save_every": "checkpoint_every_steps",
    "checkpoint_every": "checkpoint_every_steps",
    "out": "dir",
    "out_dir": "dir",
    "output": "dir",
    "output_dir": "dir",
    "save_dir": "dir",
    "log_dir": "dir",
    "random_seed": "seed",
    "checkpoint": "weights",
    "ckpt": "weights",
    "pretrained": "weights",
    "dataset": "train",
    "train_data": "train",
    "shards": "train",
    "val": "heldout",
    "valid": "heldout",
    "validation_data": "heldout",
    "val_data": "heldout",
    "img_size": "image_size",
    "input_size": "image_size",
}


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The known key that was most likely meant; None where none is near.

    A key whose last part is right, or is another program's word for one, goes before one that is
    only spelled alike; of several the one in the same section, else the highest and first.
    """
    section, _, last = key.rpartition(".")
    for name in filter(None, (last, ALIASES.get(last))):
        same = [one for one in known if one.rpartition(".")[2] == name]
        if same:
            return min(same, key=lambda one: (one.rpartition(".")[0] != section, one.count(".")))
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return near[0]
    lasts = [one.rpartition(".")[2] for one in known]
    alike = difflib.get_close_matches(last, lasts, n=1, cutoff=0.6)
    return known[lasts.index(alike[0])] if alike else None
