"""Weights of classifiers: names of MAE's finetuned files, and backbones of other files.

A backbone comes from `efficientsam pretrain`, from a segmenter (ours or the released EfficientSAM),
from a classifier, or from a file in the names of timm's and MAE's ViTs.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from efficientsam_pl.models.classifier import Classifier, pooling_norm
from efficientsam_pl.models.weights import WeightsFile, load_strictly, read_weights, strip_prefix
from efficientsam_pl.models.weights_source import WeightsError

_TRUNK = "image_encoder.trunk."
_BACKBONE = ("cls_token", "pos_embed", "patch_embed.", "blocks.")  # in timm's and MAE's ViTs
# MAE's and timm's parts that a new classifier has no use for: heads, norms, the pretraining decoder
_OTHER_PARTS = ("norm.", "fc_norm.", "head.", "mask_token", "decoder_")
_NORMS = ("norm", "fc_norm")


def mae_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a classifier's state dict to the names of MAE's finetuned checkpoints."""
    return {name.removeprefix(_TRUNK): tensor for name, tensor in state.items()}


def from_mae_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `mae_names`; our names pass unchanged."""
    return {
        f"{_TRUNK}{name}" if name.startswith(_BACKBONE) else name: tensor
        for name, tensor in state.items()
    }


def load_classifier_file(
    model: Classifier, path: str, file: WeightsFile | None = None, key: str = "model.classes"
) -> None:
    """Load a whole classifier, of ours or of MAE's finetuning.

    The norm of the other way of pooling, which MAE's models may have too, is left out.

    Args:
        model: The classifier.
        path: The file.
        file: Its content, if it has been read already.
        key: The config key of the number of classes, for the message.

    Raises:
        WeightsError: The file cannot be read, holds no classifier, or another one.
    """
    file = file or read_weights(path)
    state = from_mae_names(file.state)
    if "head.weight" not in state:
        raise WeightsError(
            f"{path} holds no classifier: it has no head; model.encoder= takes a backbone alone"
        )
    _check_heads(model, file, path)
    if file.config is not None and file.config.get("pool") not in (None, model.config.pool):
        raise WeightsError(f"{path} has pool={file.config['pool']}, not {model.config.pool}")
    classes = len(state["head.weight"])
    if classes != model.config.classes:
        raise WeightsError(
            f"{path} has a head of {classes} classes, {key} is {model.config.classes}; "
            f"model.encoder={path} takes its backbone alone"
        )
    used = pooling_norm(model.config)
    other = tuple(f"{norm}." for norm in _NORMS if norm != used)
    load_strictly(model, {k: v for k, v in state.items() if not k.startswith(other)}, path)


def load_backbone(model: Classifier, path: str) -> None:
    """Load the backbone of a file; the head keeps its weights.

    A model that pools the class token takes the file's last norm as well, if it has one.

    Raises:
        WeightsError: The file cannot be read, or holds another backbone.
    """
    file = read_weights(path)
    _check_heads(model, file, path)
    state = strip_prefix(file.state, _TRUNK)
    if not state:
        # of a ViT without a head all names begin with one of these
        state = {k: v for k, v in file.state.items() if not k.startswith(_OTHER_PARTS)}
    _check_class_token(model, state, path)
    load_strictly(model.image_encoder.trunk, _with_class_position(state, model), path)
    norm = strip_prefix(file.state, "norm.")
    if norm and model.config.pool == "class_token":
        load_strictly(model.get_submodule("norm"), norm, path)


def _check_class_token(model: Classifier, state: Mapping[str, Tensor], path: str) -> None:
    there, wanted = "cls_token" in state, model.config.vit.class_token
    if state and there != wanted:
        has = "a" if there else "no"
        raise WeightsError(
            f"{path} has {has} class token, and model.vit.class_token={str(wanted).lower()}: give "
            f"model.vit.class_token={str(there).lower()}"
        )


def _with_class_position(state: Mapping[str, Tensor], model: Classifier) -> dict[str, Tensor]:
    """Add the class token's unused position to a ViT that never had one, as some of timm's."""
    positions = state.get("pos_embed")
    patches = model.config.vit.position_grid**2
    if model.config.vit.class_token or positions is None or positions.shape[1:2] != (patches,):
        return dict(state)
    return {
        **state,
        "pos_embed": torch.cat([positions.new_zeros(1, 1, positions.shape[2]), positions], 1),
    }


def _check_heads(model: Classifier, file: WeightsFile, path: str) -> None:
    """Check the number of heads, which shapes do not reveal, where a file states it."""
    config: Mapping[str, Any] = file.config or {}
    stored = config.get("vit", config.get("encoder", config))
    heads = stored.get("heads") if isinstance(stored, Mapping) else None
    if file.layout is None and heads not in (None, model.config.vit.heads):
        raise WeightsError(
            f"{path} holds weights of another model: vit.heads={heads} for {model.config.vit.heads}"
        )
