"""A training checkpoint to one file, without a GPU and without a process group."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from efficientsam_pl.errors import UserError
from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.models.weights import (
    CHECKPOINT_VERSION,
    FORMAT,
    part,
    released_names,
    safetensors_header,
)

# What another width or depth of the released layout may differ in, and a fresh model's draw
_SIZES = ("candidates", "depth", "mlp_width", "iou_head_width", "position_scale")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A run's checkpoint as plain values and tensors.

    Raises:
        UserError: Not a checkpoint of this program, or of an unknown version.
    """
    if not path.is_file():
        raise UserError(f"no such checkpoint: {path}")
    try:
        checkpoint: dict[str, Any] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=True
        )
        header = checkpoint[FORMAT]
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        raise UserError(f"{path} is no checkpoint of this program") from error
    if header["version"] != CHECKPOINT_VERSION:
        raise UserError(
            f"{path} has checkpoint version {header['version']}, "
            f"this program reads version {CHECKPOINT_VERSION}"
        )
    return checkpoint


def consolidate(path: Path, out: Path, measured: Mapping[str, float | None] | None = None) -> None:
    """Writes the model's weights of a checkpoint, averaged ones first, with their provenance.

    A name that ends in .pt gets a finetuned model of the released layout under the released names
    (without provenance), for programs that read EfficientSAM's own files.

    A finetuning checkpoint gives the whole segmenter, a pretraining one the student's encoder
    under the names that finetuning reads.

    Args:
        path: The checkpoint.
        out: A safetensors file, or a .pt file in the released form.
        measured: Losses of these very weights, known only after they were saved.

    Raises:
        UserError: As `read_checkpoint`, or a .pt file is asked for of another layout.
    """
    checkpoint = read_checkpoint(path)
    header = checkpoint[FORMAT]
    whole = checkpoint["state_dict"]
    averaged = part(whole, "average.")
    state = averaged or part(whole, "model.")
    if out.suffix == ".pt":
        _check_released_layout(header)
        _written_aside(out, lambda path: torch.save({"model": released_names(state)}, path))
        return
    if header["stage"] == "pretrain":
        state = {f"image_encoder.trunk.{k}": v for k, v in part(state, "encoder.").items()}
    provenance = {
        "stage": header["stage"],
        "steps": int(checkpoint["global_step"]),
        "weights": "averaged" if averaged else "last",
        "losses": header["losses"] | dict(measured or {}),
        "data": header["data"],
        "teacher": header.get("teacher"),
        "features": header.get("features"),
        "config": header["config"],
        "versions": header["versions"],
    }
    write_safetensors(out, state, header["model"], provenance)


def write_safetensors(
    out: Path, state: dict[str, Tensor], model: dict[str, Any], provenance: dict[str, Any]
) -> None:
    """One file of ours, written aside, synced and renamed."""
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    header = safetensors_header(model, provenance)
    _written_aside(out, lambda path: save_file(contiguous, path, header))


def _check_released_layout(header: Mapping[str, Any]) -> None:
    if header["stage"] != "finetune":
        raise UserError("a .pt file is for a finetuned model; an encoder goes to .safetensors")
    released, model = asdict(SegmenterConfig()), header["model"]
    differing = [
        f"{part}.{key}={value}"
        for part in ("prompts", "decoder")
        for key, value in model[part].items()
        if key not in _SIZES and value != released[part][key]
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


def _written_aside(out: Path, write: Callable[[Path], None]) -> None:
    """Written under another name, synced and renamed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".part")
    write(partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(out)
