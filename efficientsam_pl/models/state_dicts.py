"""Find the state dict in what a training program saved, and strip what wrappers add to names."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from efficientsam_pl.models.weights_source import WeightsError

StateDict = dict[str, Tensor]

_KEYS = (  # under which training programs store the model; two of them are two models
    *("model", "state_dict", "model_state_dict", "model_state", "module", "net", "network"),
    *("weights", "params", "student", "teacher"),
    *("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "params_ema"),
)
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # torch's own
_PREFIXES = ("module.", "model.", "net.", "network.", "sam.", "state_dict.")
_AVERAGE_COUNT = "n_averaged"  # beside `module.` in torch's AveragedModel


def find_state_dict(loaded: Any, path: str) -> StateDict:
    """Return the only state dict in a loaded file, however deep it is nested.

    Raises:
        WeightsError: There is none, or it is not clear which of several is meant.
    """
    if not isinstance(loaded, Mapping):
        raise WeightsError(
            f"weights: {path} holds no state dict of tensors but a {type(loaded).__name__}"
        )
    if _is_state_dict(loaded):
        return {name: tensor.detach() for name, tensor in loaded.items()}
    nested = [key for key, value in loaded.items() if _may_hold_state(key, value)]
    keys = [key for key in nested if key in _KEYS] or nested
    if len(keys) == 1:
        return find_state_dict(loaded[keys[0]], path)
    listed = _listed(keys or loaded)
    if keys:
        raise WeightsError(
            f"weights: {path} holds several state dicts ({listed}); save one of them alone: "
            f"torch.save(torch.load(...)[{keys[0]!r}], FILE)"
        )
    raise WeightsError(f"weights: {path} holds no state dict of tensors (its keys: {listed})")


def strip_wrappers(state: Mapping[str, Tensor], path: str) -> StateDict:
    """Remove from names what DDP, FSDP, torch.compile and Lightning modules add to them.

    The names of torch's wrappers go wherever they stand, `module.`, `model.` and their like where
    all names begin with them, repeatedly.

    Raises:
        WeightsError: Two tensors would get the same name.
    """
    names = {name: _unwrapped(name) for name in state}
    if all(name.startswith("module.") or name == _AVERAGE_COUNT for name in names.values()):
        names.pop(_AVERAGE_COUNT, None)
    while prefix := _common_prefix(names.values()):
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    stripped: StateDict = {}
    for name, short in names.items():
        if short in stripped:
            raise WeightsError(f"weights: {path} holds two tensors that are called {short}")
        stripped[short] = state[name]
    return stripped


def check_values(state: Mapping[str, Tensor], path: str) -> None:
    """Refuse tensors that are no plain arrays, and NaN and infinite weights.

    Raises:
        WeightsError: Names the first such tensor.
    """
    for name, tensor in state.items():
        if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
            raise WeightsError(f"weights: {path}: {name} is no plain dense tensor")
        if tensor.is_floating_point() and tensor.numel():
            values = tensor.float() if tensor.element_size() == 1 else tensor  # no aminmax of fp8
            if not all(bound.isfinite() for bound in values.aminmax()):  # NaN is passed on
                kind = "NaN" if values.isnan().any() else "infinite"
                raise WeightsError(f"weights: {path} holds {kind} weights in {name}")


def name_groups(names: Iterable[str]) -> str:
    """Count names by their first component: `model. (304), loss. (1)`."""
    counts: dict[str, int] = {}
    for name in names:
        first, dot, _ = name.partition(".")
        counts[first + dot] = counts.get(first + dot, 0) + 1
    return _listed([f"{first} ({count})" for first, count in counts.items()])


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _may_hold_state(key: Any, value: Any) -> bool:
    """Whether a value is a state dict, or holds one below a name that models have."""
    if _is_state_dict(value):
        return key in _KEYS or not str(key).startswith(("rng", "random"))
    if not isinstance(value, Mapping) or key not in _KEYS:
        return False
    return any(_may_hold_state(inner, held) for inner, held in value.items())


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _common_prefix(names: Iterable[str]) -> str | None:
    listed = list(names)
    first = next((p for p in _PREFIXES if listed and listed[0].startswith(p)), None)
    return first if first and all(name.startswith(first) for name in listed) else None


def _listed(names: Iterable[Any], limit: int = 6) -> str:
    listed = [str(name) for name in names]
    shown = ", ".join(listed[:limit]) or "none"
    return shown if len(listed) <= limit else f"{shown} and {len(listed) - limit} more"
