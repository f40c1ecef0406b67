"""Models by name, as users load them."""

import hashlib
from functools import lru_cache
from pathlib import Path

from efficientsam_pl.config.load import ConfigError, from_dict
from efficientsam_pl.inference.load import load_segmenter
from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.models.registry import segmenter_config
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.models.weights import read_weights


def load_model(name: str | None = None, weights: str | None = None) -> Segmenter:
    """A segmenter ready for `Predictor`.

    Args:
        name: efficient_sam_{ti,s}, efficient_sam_{ti,s}_interactive, sam_vit_{b,l,h}, or a config
            file. None: what the weights file says about itself (files of `consolidate`).
        weights: An officially released file, or one of ours; None: fresh random weights.

    Raises:
        ConfigError: An unknown name, or none where the file does not tell.
        WeightsError: A file that cannot be read, or of another model.
    """
    config = _config_in(weights) if name is None else segmenter_config(name)
    return load_segmenter(config, weights).eval()


@lru_cache(maxsize=1)  # of two gigabytes, asked for by every part of a feature store
def weights_sha256(path: str) -> str:
    """What tells a file of weights from all others."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config_in(weights: str | None) -> SegmenterConfig:
    if weights is None:
        raise ConfigError("name a model or a weights file")
    told = read_weights(weights).config
    if told is None:
        raise ConfigError(
            f"{weights} does not tell its model: name it (--model, or model.name= of evaluate)"
        )
    if "encoder" not in told:
        raise ConfigError(f"{weights} holds a pretrained encoder, not a segmenter")
    return from_dict(SegmenterConfig, told)
