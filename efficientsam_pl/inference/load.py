"""A segmenter with its weights: whole, or put together as finetuning begins with it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from efficientsam_pl.models.config import NAMED, ModelConfig, SegmenterConfig
from efficientsam_pl.models.extend_prompt_encoder import extend_prompt_encoder
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.models.weights import (
    WeightsError,
    WeightsFile,
    load_strictly,
    read_weights,
    strip_prefix,
)

_RELEASED = {"EfficientSAM": "efficient_sam_ti", "SAM": "sam_vit_b"}
# What decides how weights are used and cannot be told from their shapes: of what comes after the
# features, of the encoder's blocks, and where they attend
_DECODING = (
    "decoder.heads",
    "decoder.activation",
    "decoder.upscaling_norm",
    "decoder.token_position",
    "prompts.padding_position",
)
_ENCODING = ("resize", "encoder.heads", "encoder.global_attention")
_WINDOWS = ("encoder.window", "encoder.global_blocks")


def load_segmenter(config: SegmenterConfig, weights: str | None) -> Segmenter:
    """A segmenter, freshly initialised or with the weights of a file.

    Args:
        config: Its shape.
        weights: A file of the whole model, released or ours.

    Raises:
        WeightsError: A file that cannot be read or does not fit.
    """
    model = Segmenter(config)
    if weights is not None:
        file = read_weights(weights)
        windows = config.encoder.kind == "sam_vit" or config.encoder.global_attention == "listed"
        own = (*_ENCODING, *(_WINDOWS if windows else ())) if file.layout is None else ()
        _check_conventions(file, config, weights, (*_DECODING, *own))
        load_strictly(model, file.state, weights)
    return model


def starting_segmenter(config: SegmenterConfig, start: ModelConfig) -> Segmenter:
    """The segmenter that finetuning begins with: a whole model, or parts, or fresh.

    Prompts that the files' models do not know are added so that what they do know is answered as
    by them. An encoder's file may hold its neck or end before it.

    Args:
        config: Its shape.
        start: Which files its weights come from.

    Raises:
        WeightsError: A file that cannot be read or does not fit.
    """
    model = Segmenter(config)
    if start.weights is not None:
        file = read_weights(start.weights)
        _check_heads(file, config, start.weights)
        load_strictly(model, _decoding_state(model, file, start.weights), start.weights)
    if start.decoder is not None:
        state = _decoding_state(model, read_weights(start.decoder), start.decoder)
        for name in ("prompt_encoder", "mask_decoder"):
            load_strictly(model.get_submodule(name), strip_prefix(state, f"{name}."), start.decoder)
    if start.encoder is not None:
        _load_encoder(model, start.encoder)
    return model


def _decoding_state(model: Segmenter, file: WeightsFile, path: str) -> dict[str, Tensor]:
    """All of a file's tensors, and those that its prompt encoder lacks beside the model's."""
    _check_conventions(file, model.config, path, _DECODING)
    prompts = strip_prefix(file.state, "prompt_encoder.")
    if not prompts:
        raise WeightsError(f"{path} holds no prompt encoder and mask decoder")
    more = extend_prompt_encoder(model.prompt_encoder, prompts)
    return file.state | {f"prompt_encoder.{name}": tensor for name, tensor in more.items()}


def _load_encoder(model: Segmenter, path: str) -> None:
    file = read_weights(path)
    state = strip_prefix(file.state, "image_encoder.")
    if not state:
        raise WeightsError(f"{path} holds no image encoder")
    _check_heads(file, model.config, path)
    if any(name.startswith("neck.") for name in state):
        load_strictly(model.image_encoder, state, path)
    else:
        load_strictly(model.image_encoder.trunk, strip_prefix(state, "trunk."), path)


def _check_heads(file: WeightsFile, config: SegmenterConfig, path: str) -> None:
    """The encoder's, which no shape tells; where its blocks attend may change from here on."""
    told = file.config or {}
    heads = told.get("heads", _at(told, "encoder.heads"))  # an encoder's own file, or a whole one
    if file.layout is None and heads not in (None, config.encoder.heads):
        raise WeightsError(
            f"{path} holds weights of another model; encoder.heads={heads} for "
            f"{config.encoder.heads}"
        )


def _check_conventions(
    file: WeightsFile, config: SegmenterConfig, path: str, keys: Sequence[str]
) -> None:
    told = file.config if file.layout is None else asdict(NAMED[_RELEASED[file.layout]])
    if told is None:
        return
    wanted = asdict(config)
    differing = [
        f"{key}={_at(told, key)} for {_at(wanted, key)}"
        for key in keys
        if _at(told, key) not in (None, _at(wanted, key))
    ]
    if differing:
        raise WeightsError(f"{path} holds weights of another model; {', '.join(differing)}")


def _at(config: Mapping[str, Any], key: str) -> Any:
    """None where a file of an earlier version, or of another model, does not tell."""
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return list(value) if isinstance(value, tuple) else value  # as JSON gives them back
