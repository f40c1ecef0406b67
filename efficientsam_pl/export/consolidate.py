"""A training checkpoint to one safetensors file, without a GPU and without a process group."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from efficientsam_pl.errors import UserError
from efficientsam_pl.models.weights import CHECKPOINT_VERSION, FORMAT, part, safetensors_header


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

    A finetuning checkpoint gives the whole segmenter, a pretraining one the student's encoder
    under the names that finetuning reads.

    Args:
        path: The checkpoint.
        out: A safetensors file.
        measured: Losses of these very weights, known only after they were saved.

    Raises:
        UserError: As `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    header = checkpoint[FORMAT]
    whole = checkpoint["state_dict"]
    averaged = part(whole, "average.")
    state = averaged or part(whole, "model.")
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
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".part")
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(contiguous, partial, safetensors_header(model, provenance))
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(out)
