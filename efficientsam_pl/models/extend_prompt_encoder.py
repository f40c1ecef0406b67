"""Add prompt types to a released prompt encoder without changing its outputs at initialisation."""

from collections.abc import Mapping

import torch
from torch import Tensor

from efficientsam_pl.models.prompt_encoder import PromptEncoder


def extend_prompt_encoder(encoder: PromptEncoder, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fill in the weights of prompt types that a checkpoint of a smaller prompt encoder lacks.

    The negative click is initialised to the embedding of "not a point". Mask and drawn prompts
    contribute nothing at first: the last convolution of their branch and the embedding of "no
    mask" are zero.

    Args:
        encoder: Freshly initialised encoder, which gives the other initial values.
        state: State dict of the checkpoint's prompt encoder; existing entries are kept.
    """
    initial = encoder.state_dict()
    initialisers = {
        "label_vectors.negative.": _padding_vector,
        "no_mask_embed.": _zeros,
        "mask_downscaling.": _zero_last_layer,
        "map_downscaling.": _zero_last_layer,
    }
    extended = dict(state)
    for prefix, initialise in initialisers.items():
        fresh = {name: tensor for name, tensor in initial.items() if name.startswith(prefix)}
        if not any(name.startswith(prefix) for name in state):
            extended |= initialise(fresh, state)
    return extended


def _padding_vector(fresh: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    padding = state.get("label_vectors.padding.weight")
    return {} if padding is None else {name: padding.clone() for name in fresh}


def _zeros(fresh: Mapping[str, Tensor], _: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in fresh.items()}


def _zero_last_layer(fresh: Mapping[str, Tensor], _: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zero weight and bias of the last layer, numbered as in `prompt_maps.downscaling`."""
    last = max((_layer_index(name) for name in fresh), default=None)
    return {
        name: torch.zeros_like(tensor) if _layer_index(name) == last else tensor
        for name, tensor in fresh.items()
    }


def _layer_index(name: str) -> int:
    return int(name.split(".")[1])
