"""Convert a training checkpoint to one weights file, without a GPU or a process group."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficientsam_pl.checkpoints.layout import MANIFEST, CheckpointError, check_checksums
from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.errors import UserError
from efficientsam_pl.export.output_format import output_format
from efficientsam_pl.export.streamed import write_streamed
from efficientsam_pl.models.classifier_weights import mae_names
from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.models.detection.names import detectron2_names
from efficientsam_pl.models.released_names import released_names
from efficientsam_pl.models.semantic.weights import mask2former_names
from efficientsam_pl.models.weights import FORMAT, safetensors_header, strip_prefix
from efficientsam_pl.storage.atomic import atomic_write_local

_FIRST_PREFIXES = {  # of checkpoints that do not name theirs
    "pretrain": ("encoder.", "image_encoder.trunk."),
    "finetune": ("", ""),
}
# Keys in which a model of the released layout may differ: sizes, and a scale used at initialisation
_FREE_KEYS = ("candidates", "depth", "mlp_width", "iou_head_width", "position_scale")


def consolidate(path: Path, out: Path, measured: Mapping[str, float | None] | None = None) -> None:
    """Write the weights of a checkpoint with their provenance; EMA weights if it has them.

    A .pt file gets a whole model under the names of a released one (without provenance), for
    programs that read such files: a segmenter under EfficientSAM's, a classifier under MAE's, a
    detector under detectron2's, a semantic segmenter under Mask2Former's.

    A finetuning checkpoint gives the whole segmenter, a pretraining checkpoint the student's
    encoder under the names that finetuning reads.

    Args:
        path: The checkpoint's folder.
        out: A safetensors file, which is written a tensor at a time, or a .pt file in the released
            form.
        measured: Losses of these weights that were computed after they were saved.

    Raises:
        UserError: Not a complete checkpoint, a corrupt one, another suffix, or a .pt file for
            another layout.
    """
    file_format = output_format(out)
    check_checksums(path)
    checkpoint = CheckpointReader(path)
    _check_step(checkpoint)
    header = checkpoint.values[FORMAT]
    has_ema = any(name.startswith("average.") for name in checkpoint.names())
    prefix = "average." if has_ema else "model."
    if file_format == "pt":
        form = _released_form(header)
        tensors = checkpoint.tensors(lambda name: name.startswith(prefix))
        state = strip_prefix(dict(tensors), prefix)
        with atomic_write_local(out) as file:
            torch.save({"model": form.rename(state)}, file)
        return
    stored, exported = header.get("export_prefix") or _FIRST_PREFIXES[header["stage"]]
    source = prefix + stored
    names = {
        exported + name.removeprefix(source): name
        for name in checkpoint.names()
        if name.startswith(source)
    }
    provenance = {
        "stage": header["stage"],
        "steps": checkpoint.manifest.step,
        "weights": "averaged" if has_ema else "last",
        "losses": header["losses"] | dict(measured or {}),
        "data": header["data"],
        "teacher": header.get("teacher"),
        "features": header.get("features"),
        "config": header["config"],
        "versions": header["versions"],
    }
    shapes = {name: checkpoint.meta_tensor(stored) for name, stored in names.items()}
    chunks = (checkpoint.tensor(stored) for stored in names.values())
    write_safetensors(out, shapes, chunks, header["model"], provenance)


def write_safetensors(
    out: Path,
    shapes: Mapping[str, Tensor],
    tensors: Iterable[Tensor],
    model: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Write a safetensors file with our metadata, a tensor at a time, atomically.

    Args:
        out: The file.
        shapes: Tensors by name, used for shape and dtype only.
        tensors: The tensors to write, in the same order.
        model: The model's config.
        provenance: How the weights were produced.
    """
    header = safetensors_header(model, provenance)
    with atomic_write_local(out) as file:
        write_streamed(file, shapes, tensors, header)


def _check_step(checkpoint: CheckpointReader) -> None:
    """Compare the step in the manifest, which has no checksum itself, with the one in a file."""
    steps = checkpoint.manifest.step, checkpoint.values["global_step"]
    if steps[0] != steps[1]:
        raise CheckpointError(
            f"the checkpoint {checkpoint.folder} is corrupt: {MANIFEST} is of step {steps[0]}, "
            f"{checkpoint.manifest.values} of step {steps[1]}"
        )


def _check_released_layout(header: Mapping[str, Any]) -> None:
    released, model = asdict(SegmenterConfig()), header["model"]
    differing = [
        f"{section}.{key}={value}"
        for section in ("prompts", "decoder")
        for key, value in model[section].items()
        if key not in _FREE_KEYS and value != released[section][key]
    ]
    encoder = model["encoder"]
    layout = {
        "encoder.kind": encoder["kind"],
        "encoder.global_attention": encoder.get("global_attention", "all"),
        "encoder.relative_positions": encoder.get("relative_positions", "none"),
        "resize": model["resize"],
    }
    expected = {
        "encoder.kind": "vit",
        "encoder.global_attention": "all",
        "encoder.relative_positions": "none",
        "resize": "squash",
    }
    differing += [f"{key}={value}" for key, value in layout.items() if value != expected[key]]
    if differing:
        raise UserError(
            "a .pt file needs the released layout, from which this model differs "
            f"({', '.join(differing)}); write a .safetensors file instead"
        )


@dataclass(frozen=True)
class _ReleasedForm:
    """The names of a released model, and the check that a model has its layout."""

    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    check: Callable[[Mapping[str, Any]], None]


_RELEASED = {  # by the stage whose model is written
    "finetune": _ReleasedForm(released_names, _check_released_layout),
    "classify": _ReleasedForm(mae_names, lambda header: None),
    "detect": _ReleasedForm(detectron2_names, lambda header: None),
    "semantic": _ReleasedForm(mask2former_names, lambda header: None),
}


def _released_form(header: Mapping[str, Any]) -> _ReleasedForm:
    form = _RELEASED.get(header["stage"])
    if form is None:
        raise UserError("a .pt file is for a finetuned model; an encoder goes to .safetensors")
    form.check(header)
    return form
