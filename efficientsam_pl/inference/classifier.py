"""Load a classifier, and classify images with it."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from efficientsam_pl.config.load import ConfigError, from_dict
from efficientsam_pl.data.datasets.labelled import ScoringView
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.classifier import Classifier
from efficientsam_pl.models.classifier_config import ClassifierConfig
from efficientsam_pl.models.classifier_weights import load_classifier_file
from efficientsam_pl.models.weights import read_weights


@dataclass(frozen=True)
class ClassProbability:
    """A class of the model and its probability."""

    number: int
    name: str
    probability: float


def load_classifier(weights: str) -> Classifier:
    """Load a classifier that `efficientsam consolidate` wrote, in eval mode.

    Raises:
        UserError: The file cannot be read, or holds no classifier.
    """
    file = read_weights(weights)
    if file.config is None or "vit" not in file.config:
        raise UserError(f"{weights} holds no classifier of `efficientsam consolidate`")
    try:
        config = from_dict(ClassifierConfig, file.config)
    except ConfigError as error:
        raise ConfigError(f"{weights}: the model's config in its metadata: {error}") from error
    model = Classifier(config)
    load_classifier_file(model, weights, file, key="the config in its metadata")
    return model.eval()


def scoring_view(config: ClassifierConfig) -> ScoringView:
    """Build the view through which a model's images are scored."""
    return ScoringView(config.vit.image_size, config.resize_side())


@torch.no_grad()
def classify(
    model: Classifier, image: UInt8[np.ndarray, "h w 3"], most: int = 5
) -> tuple[ClassProbability, ...]:
    """Return the most probable classes of an image, the first leading."""
    device = model.head.weight.device
    square = scoring_view(model.config).cut(image)[None].to(device)
    top = probabilities(model, square)[0].topk(min(most, model.config.classes))
    return tuple(
        ClassProbability(int(number), model.config.label(int(number)), float(value))
        for value, number in zip(top.values, top.indices, strict=True)
    )


def probabilities(model: Classifier, image: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b k"]:
    """Classify images at the model's size; in float32 whatever the logits are computed in."""
    logits: Tensor = model(image)
    return logits.float().softmax(-1)
