"""Weights of semantic segmenters: Mask2Former's names, and files that hold a whole segmenter."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from efficientsam_pl.models.backbone_weights import check_heads
from efficientsam_pl.models.detection.names import detectron2_names
from efficientsam_pl.models.semantic.mask2former import SemanticSegmenter
from efficientsam_pl.models.weights import WeightsFile, load_strictly, read_weights
from efficientsam_pl.models.weights_source import WeightsError

_HEAD, _THEIR_HEAD = "head.", "sem_seg_head."
_CLASSES = "head.predictor.class_embed.weight"
# of Mask2Former's files: the weights of its loss, and a constant of detectron2's normalisation
_CONSTANTS = ("criterion.", "pixel_mean", "pixel_std")


def mask2former_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a segmenter's state dict, or a part of it, to the names of Mask2Former's files.

    Backbone and pyramid get those of detectron2's ViTDet, since Mask2Former has no plain ViT.
    """
    return {
        _THEIR_HEAD + name.removeprefix(_HEAD) if name.startswith(_HEAD) else theirs: tensor
        for (name, tensor), theirs in zip(state.items(), detectron2_names(state), strict=True)
    }


def from_mask2former_names(
    state: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Undo `mask2former_names`; other names pass unchanged.

    Args:
        state: A file's tensors.
        ours: State dict of a segmenter, for its names.
    """
    names = dict(zip(mask2former_names(ours), ours, strict=True))
    return {
        names.get(name, name): tensor
        for name, tensor in state.items()
        if not name.startswith(_CONSTANTS)
    }


def load_semantic_file(
    model: SemanticSegmenter,
    path: str,
    file: WeightsFile | None = None,
    key: str = "model.classes",
) -> None:
    """Load a whole segmenter, of ours or in Mask2Former's names.

    Args:
        model: The segmenter.
        path: The file.
        file: Its content, if it has been read already.
        key: The config key of the number of classes, for the message.

    Raises:
        WeightsError: The file cannot be read, or holds no segmenter, another one, or one of other
            classes.
    """
    file = file or read_weights(path)
    state = from_mask2former_names(file.state, model.state_dict())
    if _CLASSES not in state:
        raise WeightsError(
            f"{path} holds no semantic segmenter: it has no {_CLASSES}; model.encoder= takes a "
            "backbone alone"
        )
    check_heads(model.config.vit, file, path)
    _check_settings(model, file, path)
    classes = len(state[_CLASSES]) - 1
    if classes != model.config.classes:
        raise WeightsError(
            f"{path} has a head of {classes} classes, {key} is {model.config.classes}; "
            f"model.encoder={path} takes its backbone alone"
        )
    _check_labels(model, file, path)
    load_strictly(model, state, path)


def _check_settings(model: SemanticSegmenter, file: WeightsFile, path: str) -> None:
    """Compare what shapes do not reveal, where the file states it."""
    stored: Mapping[str, Any] = file.config or {}
    head = stored.get("head")
    pairs: list[tuple[str, Any, Any]] = [
        ("features", stored.get("features"), model.config.features)
    ]
    if isinstance(head, Mapping):
        pairs.append(("head.heads", head.get("heads"), model.config.head.heads))
    if stored.get("features") == "blocks" and model.config.features == "blocks":
        theirs = list(stored.get("feature_blocks", ()))
        pairs.append(("feature_blocks", theirs, list(model.config.feature_blocks)))
    for name, value, ours in pairs:
        if value not in (None, ours):
            raise WeightsError(f"{path} has {name}={value}, not {ours}")


def _check_labels(model: SemanticSegmenter, file: WeightsFile, path: str) -> None:
    theirs = tuple((file.config or {}).get("labels") or ())
    ours = model.config.labels
    if not theirs or not ours or theirs == ours:
        return
    number = next(n for n, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    raise WeightsError(
        f"{path} was trained on other classes: its class {number} is {theirs[number]}, that of "
        f"data.train {ours[number]}; model.encoder={path} takes its backbone alone"
    )
