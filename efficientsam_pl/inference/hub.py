"""Load models by name."""

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
    """Load a segmenter in eval mode, ready for `Predictor`.

    Args:
        name: efficient_sam_{ti,s}, efficient_sam_{ti,s}_interactive, sam_vit_{b,l,h}, or a config
            file. None: read from the weights file (files of `consolidate` contain it).
        weights: An officially released file, or one of ours; None: random initialisation.

    Raises:
        ConfigError: An unknown name, or no name and a file without a model config.
        WeightsError: The file cannot be read or belongs to another model.
    """
    config = _config_in(weights) if name is None else segmenter_config(name)
    return load_segmenter(config, weights).eval()


@lru_cache(maxsize=1)  # every part of a feature store needs it, and the file may have gigabytes
def weights_sha256(path: str) -> str:
    """Compute the SHA-256 of a weights file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config_in(weights: str | None) -> SegmenterConfig:
    if weights is None:
        raise ConfigError("name a model or a weights file")
    config = read_weights(weights).config
    if config is None:
        raise ConfigError(
            f"{weights} does not contain its model's config: name the model (--model, or "
            "model.name= of evaluate)"
        )
    if "encoder" not in config:
        raise ConfigError(f"{weights} holds a pretrained encoder, not a segmenter")
    return from_dict(SegmenterConfig, config)
