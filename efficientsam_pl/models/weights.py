"""Read weights files, whoever wrote them, and load them strictly.

Known layouts: released EfficientSAM and SAM, in whatever a training program wraps them; and our
safetensors, whose header carries a format version, the model's config and a checksum.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from efficientsam_pl.models.content_hash import CHECKSUM, ContentHash
from efficientsam_pl.models.released_names import Layout, released_layout, rename_released
from efficientsam_pl.models.state_dicts import (
    check_values,
    find_state_dict,
    name_groups,
    strip_wrappers,
)
from efficientsam_pl.models.torch_files import load_torch_file
from efficientsam_pl.models.weights_source import WeightsError, file_format, unusable_reason

FORMAT = "efficientsam_pl"  # metadata key and format name of our files
FORMAT_VERSION = "1"  # version of our safetensors files


@dataclass(frozen=True)
class WeightsFile:
    """State dict in our names, with the metadata of our files."""

    state: dict[str, Tensor]
    config: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    layout: Layout | None = None  # of a release; None: ours


def read_weights(path: str | os.PathLike[str]) -> WeightsFile:
    """Read the tensors of a released file or of one of ours, renamed to our layout.

    Raises:
        WeightsError: No such file, not a weights file, a corrupt one, NaN or infinite weights, or
            an unknown format version.
    """
    file = Path(path)
    if reason := unusable_reason(file):
        raise WeightsError(f"weights: {reason}")
    if file_format(file) == "safetensors":
        weights = _read_safetensors(file)
    else:
        weights = _of_others(find_state_dict(load_torch_file(file), str(file)), file)
    check_values(weights.state, str(file))
    return weights


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict whose names and shapes must match the module exactly.

    Raises:
        WeightsError: Lists missing and unexpected names, mismatched shapes, and integers where
            the module has fractions.
    """
    ours = module.state_dict()
    missing = sorted(ours.keys() - state.keys())
    unexpected = sorted(state.keys() - ours.keys())
    shared = sorted(ours.keys() & state.keys())
    mismatched = [
        f"{name} {list(state[name].shape)} for {list(ours[name].shape)}"
        for name in shared
        if state[name].shape != ours[name].shape
    ]
    other_types = [
        f"{name} {_type(state[name])} for {_type(ours[name])}"
        for name in shared
        if state[name].is_floating_point() != ours[name].is_floating_point()
    ]
    problems = [
        f"{title}: {_short(names)}"
        for title, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", mismatched),
            ("of another type", other_types),
        )
        if names
    ]
    if problems and state and not shared:
        problems.append(f"its names begin with {name_groups(state)}")
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


def _of_others(state: Mapping[str, Tensor], path: Path) -> WeightsFile:
    stripped = strip_wrappers(state, str(path))
    return WeightsFile(rename_released(stripped), layout=released_layout(stripped))


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"weights: {path} is not a safetensors file ({error})") from error
    _check_content(state, header, path)
    if header.get("format") != FORMAT:
        return _of_others(state, path)
    if header.get("format_version") != FORMAT_VERSION:
        raise WeightsError(
            f"weights: {path} has format version {header.get('format_version')}, "
            f"this program reads version {FORMAT_VERSION}"
        )
    config = _json_object(header, "config", path)
    provenance = _json_object(header, "provenance", path)
    return WeightsFile(state, config, provenance)


def _json_object(header: Mapping[str, str], key: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(header.get(key, ""))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        state = "cannot be read" if key in header else "is missing"
        raise WeightsError(f"weights: {path}: {key!r} {state} in the metadata")
    return value


def _check_content(state: Mapping[str, Tensor], header: Mapping[str, str], path: Path) -> None:
    """Compare the checksum in the metadata, if there is one, with what was read."""
    if CHECKSUM not in header:
        return
    content = ContentHash(header)
    for name, tensor in state.items():
        content.add(name, tensor)
    if content.checksum() != header[CHECKSUM]:
        raise WeightsError(
            f"weights: {path} is corrupt: its tensors or metadata do not match the checksum that "
            f"it holds ({CHECKSUM})"
        )


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _short(names: list[str], limit: int = 6) -> str:
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"
