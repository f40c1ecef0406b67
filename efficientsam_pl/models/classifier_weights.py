"""Weights of classifiers: names of MAE's finetuned files, and backbones of other files."""

from collections.abc import Mapping

from torch import Tensor

from efficientsam_pl.models.backbone_weights import TRUNK, check_heads, load_backbone
from efficientsam_pl.models.classifier import Classifier, pooling_norm
from efficientsam_pl.models.weights import WeightsFile, load_strictly, read_weights, strip_prefix
from efficientsam_pl.models.weights_source import WeightsError

_BACKBONE = ("cls_token", "pos_embed", "patch_embed.", "blocks.")  # in timm's and MAE's ViTs
_NORMS = ("norm", "fc_norm")


def mae_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a classifier's state dict to the names of MAE's finetuned checkpoints."""
    return {name.removeprefix(TRUNK): tensor for name, tensor in state.items()}


def from_mae_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `mae_names`; our names pass unchanged."""
    return {
        f"{TRUNK}{name}" if name.startswith(_BACKBONE) else name: tensor
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
    check_heads(model.config.vit, file, path)
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


def load_classifier_backbone(model: Classifier, path: str) -> None:
    """Load the backbone of a file; the head keeps its weights.

    A model that pools the class token takes the file's last norm as well, if it has one.

    Raises:
        WeightsError: The file cannot be read, or holds another backbone.
    """
    file = load_backbone(model.image_encoder.trunk, model.config.vit, path)
    norm = strip_prefix(file.state, "norm.")
    if norm and model.config.pool == "class_token":
        load_strictly(model.get_submodule("norm"), norm, path)
