"""Suggest the config key that an unknown key most likely means."""

import difflib
from collections.abc import Sequence

# Names of other programs for the last part of our keys
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
    """Return the known key that is most likely meant; None if none is close.

    Keys with the same last part, or another program's word for it, come before keys with a similar
    spelling. Of several, the one in the same section is preferred, then the least nested.
    """
    section, _, last = key.rpartition(".")
    for name in filter(None, (last, ALIASES.get(last))):
        same = [other for other in known if other.rpartition(".")[2] == name]
        if same:
            return min(same, key=lambda k: (k.rpartition(".")[0] != section, k.count(".")))
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return near[0]
    lasts = [other.rpartition(".")[2] for other in known]
    similar = difflib.get_close_matches(last, lasts, n=1, cutoff=0.6)
    return known[lasts.index(similar[0])] if similar else None
