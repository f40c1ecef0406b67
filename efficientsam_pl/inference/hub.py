"""Load models by name."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from efficientsam_pl.config.load import ConfigError, from_dict
from efficientsam_pl.inference.load import load_segmenter
from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.models.registry import segmenter_config
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.models.weights import WeightsFile, read_weights


def load_model(
    name: str | os.PathLike[str] | None = None, weights: str | os.PathLike[str] | None = None
) -> Segmenter:
    """Load a segmenter in eval mode, ready for `Predictor`.

    Args:
        name: efficient_sam_{ti,s}, efficient_sam_{ti,s}_interactive, sam_vit_{b,l,h}, or a config
            file. None: read from the weights file (files of `consolidate` contain it).
        weights: An officially released file, or one of ours; None: random initialisation.

    Raises:
        ConfigError: An unknown name, or no name and a file without a model config.
        WeightsError: The file cannot be read or belongs to another model.
    """
    if name is not None:
        config, file = segmenter_config(os.fspath(name)), None
    elif weights is not None:
        file = read_weights(weights)
        config = _config_in(file, os.fspath(weights))
    else:
        raise ConfigError("name a model or a weights file")
    return load_segmenter(config, None if weights is None else os.fspath(weights), file).eval()


def weights_sha256(path: str | os.PathLike[str]) -> str:
    """Compute the SHA-256 of a weights file."""
    about = Path(path).stat()
    return _file_sha256(os.fspath(path), about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=1)  # every part of a feature store needs it, and the file may have gigabytes
def _file_sha256(path: str, size: int, modified_ns: int) -> str:  # of another file: another key
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config_in(file: WeightsFile, path: str) -> SegmenterConfig:
    if file.config is None:
        raise ConfigError(
            f"{path} does not contain its model's config: name the model (--model, or model.name= "
            "of evaluate)"
        )
    if "encoder" not in file.config:
        raise ConfigError(f"{path} holds a pretrained encoder, not a segmenter")
    try:
        return from_dict(SegmenterConfig, file.config)
    except ConfigError as error:
        raise ConfigError(f"{path}: the model's config in its metadata: {error}") from error
