"""A segmenter with its weights."""

from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.models.weights import load_strictly, part, read_weights


def load_segmenter(
    config: SegmenterConfig, weights: str | None, encoder: str | None = None
) -> Segmenter:
    """A segmenter, freshly initialised or with the weights of a file.

    Args:
        config: Its shape.
        weights: A file of the whole model, released or ours.
        encoder: A pretrained encoder (`efficientsam pretrain` writes it), trunk only.

    Raises:
        WeightsError: A file that cannot be read or does not fit.
    """
    model = Segmenter(config)
    if weights is not None:
        load_strictly(model, read_weights(weights).state, weights)
    if encoder is not None:
        state = part(read_weights(encoder).state, "image_encoder.trunk.")
        load_strictly(model.image_encoder.trunk, state, encoder)
    return model
