"""Weights of whole detectors, of ours and of detectron2's ViTDet."""

from efficientsam_pl.models.backbone_weights import check_heads
from efficientsam_pl.models.detection.detector import Detector
from efficientsam_pl.models.detection.names import from_detectron2_names
from efficientsam_pl.models.weights import WeightsFile, load_strictly, read_weights
from efficientsam_pl.models.weights_source import WeightsError


def load_detector_file(
    model: Detector, path: str, file: WeightsFile | None = None, key: str = "model.classes"
) -> None:
    """Load a whole detector, of ours or of detectron2.

    Args:
        model: The detector.
        path: The file.
        file: Its content, if it has been read already.
        key: The config key of the number of classes, for the message.

    Raises:
        WeightsError: The file cannot be read, holds no detector, or another one.
    """
    file = file or read_weights(path)
    ours = model.state_dict()
    is_foreign = any(name.startswith("backbone.") for name in file.state)
    state = from_detectron2_names(file.state, ours) if is_foreign else file.state
    scores = state.get("box_head.cls_score.weight")
    if scores is None:
        raise WeightsError(
            f"{path} holds no detector: it has no box head; model.encoder= takes a backbone alone"
        )
    check_heads(model.config.vit, file, path)
    if len(scores) - 1 != model.config.classes:
        raise WeightsError(
            f"{path} has a head of {len(scores) - 1} classes, {key} is {model.config.classes}; "
            f"model.encoder={path} takes its backbone alone"
        )
    load_strictly(model, state, path)
