"""A training checkpoint to one file, without a GPU and without a process group."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.errors import UserError
from efficientsam_pl.export.streamed import write_streamed
from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.models.weights import (
    FORMAT,
    released_names,
    safetensors_header,
    strip_prefix,
)
from efficientsam_pl.storage.atomic import atomic_write_local

# What another width or depth of the released layout may differ in, and a fresh model's draw
_SIZES = ("candidates", "depth", "mlp_width", "iou_head_width", "position_scale")


def consolidate(path: Path, out: Path, measured: Mapping[str, float | None] | None = None) -> None:
    """Writes the model's weights of a checkpoint, averaged ones first, with their provenance.

    A name that ends in .pt gets a finetuned model of the released layout under the released names
    (without provenance), for programs that read EfficientSAM's own files.

    A finetuning checkpoint gives the whole segmenter, a pretraining one the student's encoder
    under the names that finetuning reads.

    Args:
        path: The checkpoint's folder.
        out: A safetensors file, which is written a tensor at a time, or a .pt file in the released
            form.
        measured: Losses of these very weights, known only after they were saved.

    Raises:
        UserError: Not a whole checkpoint, or a .pt file is asked for of another layout.
    """
    stored = CheckpointReader(path)
    header = stored.values[FORMAT]
    averaged = any(name.startswith("average.") for name in stored.names())
    kept = "average." if averaged else "model."
    if out.suffix == ".pt":
        _check_released_layout(header)
        state = strip_prefix(dict(stored.tensors(lambda name: name.startswith(kept))), kept)
        with atomic_write_local(out) as file:
            torch.save({"model": released_names(state)}, file)
        return
    encoder_alone = header["stage"] == "pretrain"
    theirs, ours = (f"{kept}encoder.", "image_encoder.trunk.") if encoder_alone else (kept, "")
    names = {
        ours + name.removeprefix(theirs): name for name in stored.names() if name.startswith(theirs)
    }
    provenance = {
        "stage": header["stage"],
        "steps": stored.manifest.step,
        "weights": "averaged" if averaged else "last",
        "losses": header["losses"] | dict(measured or {}),
        "data": header["data"],
        "teacher": header.get("teacher"),
        "features": header.get("features"),
        "config": header["config"],
        "versions": header["versions"],
    }
    shapes = {name: stored.meta_tensor(own) for name, own in names.items()}
    tensors = (stored.tensor(own) for own in names.values())
    write_safetensors(out, shapes, tensors, header["model"], provenance)


def write_safetensors(
    out: Path,
    shapes: Mapping[str, Tensor],
    tensors: Iterable[Tensor],
    model: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Write a file of ours a tensor at a time, atomically.

    Args:
        out: The file.
        shapes: Tensors by name, of which only shape and type are looked at.
        tensors: Their numbers, in the same order.
        model: The model's config.
        provenance: How the weights came about.
    """
    header = safetensors_header(model, provenance)
    with atomic_write_local(out) as file:
        write_streamed(file, shapes, tensors, header)


def _check_released_layout(header: Mapping[str, Any]) -> None:
    if header["stage"] != "finetune":
        raise UserError("a .pt file is for a finetuned model; an encoder goes to .safetensors")
    released, model = asdict(SegmenterConfig()), header["model"]
    differing = [
        f"{strip_prefix}.{key}={value}"
        for strip_prefix in ("prompts", "decoder")
        for key, value in model[strip_prefix].items()
        if key not in _SIZES and value != released[strip_prefix][key]
    ]
    encoder = model["encoder"]
    told = {
        "encoder.kind": encoder["kind"],
        "encoder.global_attention": encoder.get("global_attention", "all"),
        "resize": model["resize"],
    }
    wanted = {"encoder.kind": "vit", "encoder.global_attention": "all", "resize": "squash"}
    differing += [f"{key}={value}" for key, value in told.items() if value != wanted[key]]
    if differing:
        raise UserError(
            "a .pt file is for the released layout, which this model has not "
            f"({', '.join(differing)}); name a .safetensors file"
        )
