"""Build a segmenter with its weights: a whole model, or assembled as finetuning starts it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from efficientsam_pl.models.config import NAMED, ModelConfig, SegmenterConfig
from efficientsam_pl.models.extend_prompt_encoder import extend_prompt_encoder
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.models.weights import (
    WeightsFile,
    load_strictly,
    read_weights,
    strip_prefix,
)
from efficientsam_pl.models.weights_source import WeightsError

_RELEASED = {"EfficientSAM": "efficient_sam_ti", "SAM": "sam_vit_b"}
# Keys that change how weights are used but not their shapes, so that strict loading cannot notice:
# prompt encoder and mask decoder, image encoder, window attention
_DECODING = (
    "decoder.heads",
    "decoder.activation",
    "decoder.upscaling_norm",
    "decoder.token_position",
    "prompts.padding_position",
)
_ENCODING = ("resize", "encoder.heads", "encoder.global_attention")
_WINDOWS = ("encoder.window", "encoder.global_blocks")


def load_segmenter(
    config: SegmenterConfig, weights: str | None, file: WeightsFile | None = None
) -> Segmenter:
    """Build a segmenter and load the weights of a file, if given.

    Args:
        config: The model's config.
        weights: A file of the whole model, released or ours; None: random initialisation.
        file: Its content, if it has been read already.

    Raises:
        WeightsError: The file cannot be read or does not fit.
    """
    model = Segmenter(config)
    if weights is not None:
        file = file or read_weights(weights)
        windows = config.encoder.kind == "sam_vit" or config.encoder.global_attention == "listed"
        encoding = (*_ENCODING, *(_WINDOWS if windows else ())) if file.layout is None else ()
        _check_conventions(file, config, weights, (*_DECODING, *encoding))
        load_strictly(model, file.state, weights)
    return model


def starting_segmenter(config: SegmenterConfig, start: ModelConfig) -> Segmenter:
    """Build the segmenter that finetuning starts from: a whole model, separate parts, or random.

    Prompt types that a file's model lacks are added without changing its outputs for the others.
    An encoder's file may contain the neck or not.

    Args:
        config: The model's config.
        start: The files that the weights come from.

    Raises:
        WeightsError: A file cannot be read or does not fit.
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
    """Extend a file's state dict by the tensors that its prompt encoder lacks."""
    _check_conventions(file, model.config, path, _DECODING)
    prompts = strip_prefix(file.state, "prompt_encoder.")
    if not prompts:
        raise WeightsError(f"{path} holds no prompt encoder and mask decoder")
    extended = extend_prompt_encoder(model.prompt_encoder, prompts)
    return file.state | {f"prompt_encoder.{name}": tensor for name, tensor in extended.items()}


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
    """Check the encoder's heads, which shapes do not reveal; window attention may differ here."""
    stored = file.config or {}
    heads = stored.get("heads", _at(stored, "encoder.heads"))  # a file of an encoder or a segmenter
    if file.layout is None and heads not in (None, config.encoder.heads):
        raise WeightsError(
            f"{path} holds weights of another model; encoder.heads={heads} for "
            f"{config.encoder.heads}"
        )


def _check_conventions(
    file: WeightsFile, config: SegmenterConfig, path: str, keys: Sequence[str]
) -> None:
    stored = file.config if file.layout is None else asdict(NAMED[_RELEASED[file.layout]])
    if stored is None:
        return
    expected = asdict(config)
    differing = [
        f"{key}={_at(stored, key)} for {_at(expected, key)}"
        for key in keys
        if _at(stored, key) not in (None, _at(expected, key))
    ]
    if differing:
        raise WeightsError(f"{path} holds weights of another model; {', '.join(differing)}")


def _at(config: Mapping[str, Any], key: str) -> Any:
    """Look up a dotted key; None if a file of an earlier version or another model lacks it."""
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return list(value) if isinstance(value, tuple) else value  # as JSON gives them back
