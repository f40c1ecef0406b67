"""Read weights files, map released parameter names to ours and back, load strictly.

Known layouts: released EfficientSAM (under the key "model", possibly inside a .zip), released
SAM, and our safetensors, whose header carries a format version and the model's config.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from efficientsam_pl.errors import UserError

FORMAT = "efficientsam_pl"  # metadata key and format name of our files
FORMAT_VERSION = "1"  # version of our safetensors files

_DECODER_COMMON = (
    (r"^image_encoder\.(patch_embed|pos_embed|blocks)", r"image_encoder.trunk.\1"),
    (r"output_hypernetworks_mlps\.", "hypernetworks."),
    (r"iou_prediction_head\.", "iou_head."),
)
_EFFICIENT_SAM = (
    *_DECODER_COMMON,
    (r"prompt_encoder\.invalid_points\.", "prompt_encoder.label_vectors.padding."),
    (r"prompt_encoder\.point_embeddings\.", "prompt_encoder.label_vectors.positive."),
    (r"prompt_encoder\.bbox_top_left_embeddings\.", "prompt_encoder.label_vectors.top_left."),
    (
        r"prompt_encoder\.bbox_bottom_right_embeddings\.",
        "prompt_encoder.label_vectors.bottom_right.",
    ),
    (r"final_output_upscaling_layers\.0\.", "upscaling."),
    (r"final_output_upscaling_layers\.1\.0\.", "upscaling.3."),
    (r"(transformer\.layers\.\d+\.mlp)\.layers\.0\.0\.", r"\1.fc1."),
    (r"(transformer\.layers\.\d+\.mlp)\.fc\.", r"\1.fc2."),
    (r"(hypernetworks\.\d+|iou_head)\.layers\.0\.0\.", r"\1.0."),
    (r"(hypernetworks\.\d+|iou_head)\.layers\.1\.0\.", r"\1.2."),
    (r"(hypernetworks\.\d+|iou_head)\.fc\.", r"\1.4."),
)
_SAM = (
    *_DECODER_COMMON,
    (r"^image_encoder\.neck", "image_encoder.trunk.neck"),
    (r"\.mlp\.lin(\d)\.", r".mlp.fc\1."),
    (r"prompt_encoder\.not_a_point_embed\.", "prompt_encoder.label_vectors.padding."),
    (r"prompt_encoder\.point_embeddings\.0\.", "prompt_encoder.label_vectors.negative."),
    (r"prompt_encoder\.point_embeddings\.1\.", "prompt_encoder.label_vectors.positive."),
    (r"prompt_encoder\.point_embeddings\.2\.", "prompt_encoder.label_vectors.top_left."),
    (r"prompt_encoder\.point_embeddings\.3\.", "prompt_encoder.label_vectors.bottom_right."),
    (r"output_upscaling\.", "upscaling."),
    (r"(hypernetworks\.\d+|iou_head)\.layers\.0\.", r"\1.0."),
    (r"(hypernetworks\.\d+|iou_head)\.layers\.1\.", r"\1.2."),
    (r"(hypernetworks\.\d+|iou_head)\.layers\.2\.", r"\1.4."),
)

# From our names back to those of the released EfficientSAM
_TO_EFFICIENT_SAM = (
    (r"^image_encoder\.trunk\.", "image_encoder."),
    (r"label_vectors\.padding\.", "invalid_points."),
    (r"label_vectors\.positive\.", "point_embeddings."),
    (r"label_vectors\.(top_left|bottom_right)\.", r"bbox_\1_embeddings."),
    (r"\.upscaling\.3\.", ".final_output_upscaling_layers.1.0."),
    (r"\.upscaling\.", ".final_output_upscaling_layers.0."),
    (r"\.mlp\.fc2\.", ".mlp.fc."),
    (r"(transformer\.layers\.\d+\.mlp)\.fc1\.", r"\1.layers.0.0."),
    (r"(hypernetworks\.\d+|iou_head)\.0\.", r"\1.layers.0.0."),
    (r"(hypernetworks\.\d+|iou_head)\.2\.", r"\1.layers.1.0."),
    (r"(hypernetworks\.\d+|iou_head)\.4\.", r"\1.fc."),
    (r"\.hypernetworks\.", ".output_hypernetworks_mlps."),
    (r"\.iou_head\.", ".iou_prediction_head."),
)


class WeightsError(UserError):
    """A weights file that cannot be read or does not fit the model."""


@dataclass(frozen=True)
class WeightsFile:
    """State dict in our names, with the metadata of our files."""

    state: dict[str, Tensor]
    config: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    layout: Literal["EfficientSAM", "SAM"] | None = None  # of a release; None: ours


def read_weights(path: str) -> WeightsFile:
    """Read the tensors of a released file or of one of ours, renamed to our layout.

    Raises:
        WeightsError: No such file, not a weights file, or an unknown format version.
    """
    if not Path(path).is_file():
        raise WeightsError(f"weights: no such file: {path}")
    if path.endswith(".safetensors"):
        return _read_safetensors(path)
    return _released_file(_read_pickle(path))


def rename_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a released EfficientSAM or SAM state dict to our names; ours passes unchanged."""
    layout = _layout(state)
    if layout is None:
        return dict(state)
    rules = {"EfficientSAM": _EFFICIENT_SAM, "SAM": _SAM}[layout]
    return _renamed(state, rules)


def released_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a segmenter of the released EfficientSAM's layout to the names of the release."""
    encoder = {k: v for k, v in state.items() if k.startswith("image_encoder.")}
    rest = {k: v for k, v in state.items() if k not in encoder}
    # only the mask decoder's MLPs have other names in the release, not the encoder's
    return _renamed(encoder, _TO_EFFICIENT_SAM[:1]) | _renamed(rest, _TO_EFFICIENT_SAM[1:])


def _renamed(state: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    compiled = [(re.compile(pattern), new) for pattern, new in rules]
    renamed = {}
    for name, tensor in state.items():
        for pattern, new in compiled:
            name = pattern.sub(new, name)  # noqa: PLW2901
        renamed[name] = tensor
    return renamed


def _layout(state: Mapping[str, Tensor]) -> Literal["EfficientSAM", "SAM"] | None:
    if "prompt_encoder.invalid_points.weight" in state:
        return "EfficientSAM"
    return "SAM" if "prompt_encoder.not_a_point_embed.weight" in state else None


def _released_file(state: Mapping[str, Tensor]) -> WeightsFile:
    return WeightsFile(rename_released(state), layout=_layout(state))


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict whose names and shapes must match the module exactly.

    Raises:
        WeightsError: Lists missing and unexpected names and mismatched shapes.
    """
    ours = module.state_dict()
    missing = sorted(ours.keys() - state.keys())
    unexpected = sorted(state.keys() - ours.keys())
    mismatched = [
        f"{name} {list(state[name].shape)} for {list(ours[name].shape)}"
        for name in sorted(ours.keys() & state.keys())
        if state[name].shape != ours[name].shape
    ]
    problems = [
        f"{title}: {_short(names)}"
        for title, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", mismatched),
        )
        if names
    ]
    if problems:
        raise WeightsError(f"{source} holds weights of another model; {'; '.join(problems)}")
    module.load_state_dict(dict(state), strict=True)


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors below a prefix and remove it from their names."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def safetensors_header(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, str]:
    """Build the metadata of our files: format, its version, model config, provenance."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": json.dumps(config),
        "provenance": json.dumps(provenance),
    }


def _read_safetensors(path: str) -> WeightsFile:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"weights: {path} is not a safetensors file ({error})") from error
    if header.get("format") != FORMAT:
        return _released_file(state)
    if header["format_version"] != FORMAT_VERSION:
        raise WeightsError(
            f"weights: {path} has format version {header['format_version']}, "
            f"this program reads version {FORMAT_VERSION}"
        )
    return WeightsFile(state, json.loads(header["config"]), json.loads(header["provenance"]))


def _read_pickle(path: str) -> dict[str, Tensor]:
    try:
        loaded = torch.load(_unzipped(path), map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # torch raises many types for a file that it did not write
        raise WeightsError(
            f"weights: {path} cannot be read as a checkpoint of plain tensors"
        ) from error
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"weights: {path} holds no state dict of tensors")
    return state


def _unzipped(path: str) -> str | io.BytesIO:
    """Extract the .pt of a released .zip; torch's own files are zips too, with a data.pkl."""
    if not zipfile.is_zipfile(path):
        return path
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.endswith("data.pkl") for name in names):
            return path
        inside = [name for name in names if name.endswith((".pt", ".pth"))]
        if len(inside) != 1:
            raise WeightsError(f"weights: {path} holds {len(inside)} .pt files, expected one")
        return io.BytesIO(archive.read(inside[0]))


def _short(names: list[str], limit: int = 6) -> str:
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"
