"""Load a detector, and detect objects in images with it.

Coordinates are edges of pixels, as in `structures.DetectionBatch`.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import UInt8

from efficientsam_pl.config.load import ConfigError, from_dict
from efficientsam_pl.data.detection_transforms import place_image, whole_image
from efficientsam_pl.errors import UserError
from efficientsam_pl.inference.detections import to_image
from efficientsam_pl.models.detection.config import DetectorConfig
from efficientsam_pl.models.detection.detector import Detector
from efficientsam_pl.models.detection.weights import load_detector_file
from efficientsam_pl.models.weights import read_weights
from efficientsam_pl.structures import Detections


def load_detector(weights: str) -> Detector:
    """Load a detector that `efficientsam consolidate` wrote, in eval mode.

    Raises:
        UserError: The file cannot be read, or holds no detector.
    """
    file = read_weights(weights)
    if file.config is None or "category_ids" not in file.config:
        raise UserError(f"{weights} holds no detector of `efficientsam consolidate`")
    try:
        config = from_dict(DetectorConfig, file.config)
    except ConfigError as error:
        raise ConfigError(f"{weights}: the model's config in its metadata: {error}") from error
    model = Detector(config)
    load_detector_file(model, weights, file, key="the config in its metadata")
    return model.eval()


def detect_image(model: Detector, image: UInt8[np.ndarray, "h w 3"]) -> Detections:
    """Detect objects in an image; boxes are in its pixels."""
    side = model.config.vit.image_size
    image_hw = (image.shape[0], image.shape[1])
    placement = whole_image(image_hw, side)
    frame = torch.from_numpy(place_image(image, placement, side)).permute(2, 0, 1)
    device = next(model.parameters()).device
    content_hw = torch.tensor([placement.content_hw], device=device)
    [found] = model.detect(frame[None].to(device), content_hw)
    return to_image(found, placement.content_hw, image_hw)
