"""Segmenter configs by name. Imports no torch."""

from efficientsam_pl.config.load import ConfigError, load
from efficientsam_pl.config.shipped import find_config
from efficientsam_pl.models.config import NAMED, SegmenterConfig


def segmenter_config(name: str) -> SegmenterConfig:
    """Look up a named segmenter, or load a YAML file in SegmenterConfig's form."""
    if name in NAMED:
        return NAMED[name]
    if find_config(name) is None:
        raise ConfigError(f"unknown model {name!r}: one of {', '.join(NAMED)}, or a config file")
    return load(SegmenterConfig, [name], [])
