"""Backbones of other files as initial weights: of any model that keeps a plain ViT.

A backbone comes from `efficientsam pretrain`, from a segmenter (ours or the released EfficientSAM),
from a downstream model, from detectron2's ViTDet, or from a file in the names of timm's and MAE's
ViTs.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.vit import PlainViT
from efficientsam_pl.models.weights import WeightsFile, load_strictly, read_weights, strip_prefix
from efficientsam_pl.models.weights_source import WeightsError

TRUNK = "image_encoder.trunk."  # what the names of a backbone begin with in all models of ours
# MAE's and timm's parts that a new model has no use for: heads, norms, the pretraining decoder
_OTHER_PARTS = ("norm.", "fc_norm.", "head.", "mask_token", "decoder_")
_CLASS_TOKEN = "cls_token"
_DETECTRON2 = "backbone.net."  # the same of its ViTDet


def load_backbone(
    trunk: PlainViT, vit: EncoderConfig, path: str, unused: tuple[str, ...] = ()
) -> WeightsFile:
    """Load the backbone of a file into a model's trunk.

    Relative positions that the trunk has and the file does not keep their weights, which are zero
    at initialisation: so ViTDet begins from a pretrained ViT.

    Args:
        trunk: The model's backbone.
        vit: Its config.
        path: The file.
        unused: Tensors of the file that the model does without, such as `cls_token`, which dense
            models drop (detectron2).

    Returns:
        The file, for what else a model takes from it.

    Raises:
        WeightsError: The file cannot be read, or holds another backbone.
    """
    file = read_weights(path)
    check_heads(vit, file, path)
    state = strip_prefix(file.state, TRUNK) or strip_prefix(file.state, _DETECTRON2)
    if not state:
        # of a ViT without a head all names begin with one of these
        state = {k: v for k, v in file.state.items() if not k.startswith(_OTHER_PARTS)}
    state = {name: tensor for name, tensor in state.items() if name not in unused}
    _check_class_token(vit, state, path)
    relative = {name: tensor for name, tensor in trunk.state_dict().items() if ".rel_pos_" in name}
    load_strictly(trunk, relative | _with_class_position(state, vit), path)
    return file


def check_heads(vit: EncoderConfig, file: WeightsFile, path: str) -> None:
    """Check the number of heads, which shapes do not reveal, where a file states it.

    Raises:
        WeightsError: Another number.
    """
    config: Mapping[str, Any] = file.config or {}
    stored = config.get("vit", config.get("encoder", config))
    heads = stored.get("heads") if isinstance(stored, Mapping) else None
    if file.layout is None and heads not in (None, vit.heads):
        raise WeightsError(
            f"{path} holds weights of another model: vit.heads={heads} for {vit.heads}"
        )


def _check_class_token(vit: EncoderConfig, state: Mapping[str, Tensor], path: str) -> None:
    there, wanted = _CLASS_TOKEN in state, vit.class_token
    if state and there != wanted:
        has = "a" if there else "no"
        raise WeightsError(
            f"{path} has {has} class token, and model.vit.class_token={str(wanted).lower()}: give "
            f"model.vit.class_token={str(there).lower()}"
        )


def _with_class_position(state: Mapping[str, Tensor], vit: EncoderConfig) -> dict[str, Tensor]:
    """Add the class token's unused position to a ViT that never had one, as some of timm's."""
    positions = state.get("pos_embed")
    if vit.class_token or positions is None or positions.shape[1:2] != (vit.position_grid**2,):
        return dict(state)
    return {
        **state,
        "pos_embed": torch.cat([positions.new_zeros(1, 1, positions.shape[2]), positions], 1),
    }
