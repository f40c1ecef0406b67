"""A model that knows more kinds of prompts than a file does begins as the file's model answers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from efficientsam_pl.models.prompt_encoder import PromptEncoder


def extend_prompt_encoder(encoder: PromptEncoder, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A prompt encoder's weights, with those that a file lacks because its model knew less.

    A negative click begins as the vector of "not a point". Masks and drawn prompts add nothing to
    the features at first: the last convolution of their layers is zero, and learns; so is what
    stands for "no mask".

    Args:
        encoder: Freshly initialised; what it has of a part that is missing is the part's start.
        state: Its weights, by the names within it. What is there is left as it is.
    """
    own = encoder.state_dict()
    starts = {
        "label_vectors.negative.": _padding_vector,
        "no_mask_embed.": _zeros,
        "mask_downscaling.": _silent,
        "map_downscaling.": _silent,
    }
    extend_prompt_encoder = dict(state)
    for part, start in starts.items():
        fresh = {name: tensor for name, tensor in own.items() if name.startswith(part)}
        if not any(name.startswith(part) for name in state):
            extend_prompt_encoder |= start(fresh, state)
    return extend_prompt_encoder


def _padding_vector(fresh: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    padding = state.get("label_vectors.padding.weight")
    return {} if padding is None else {name: padding.clone() for name in fresh}


def _zeros(fresh: Mapping[str, Tensor], _: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in fresh.items()}


def _silent(fresh: Mapping[str, Tensor], _: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The last layer zero, weight and bias; layers are numbered as in `prompt_maps.downscaling`."""
    last = max((_number(name) for name in fresh), default=None)
    return {
        name: torch.zeros_like(tensor) if _number(name) == last else tensor
        for name, tensor in fresh.items()
    }


def _number(name: str) -> int:
    return int(name.split(".")[1])
