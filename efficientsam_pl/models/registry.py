"""Segmenter configs by name. Imports no torch."""

from efficientsam_pl.config.load import ConfigError, load
from efficientsam_pl.config.shipped import find_config
from efficientsam_pl.models.config import NAMED, SegmenterConfig
from efficientsam_pl.models.prompt_kinds import PromptNeeds, unmet_needs


def segmenter_config(name: str) -> SegmenterConfig:
    """Look up a segmenter by name, or read a YAML file in SegmenterConfig's form."""
    if name in NAMED:
        return NAMED[name]
    if find_config(name) is None:
        raise ConfigError(f"unknown model {name!r}: one of {', '.join(NAMED)}, or a config file")
    return load(SegmenterConfig, [name], [])


def check_prompt_needs(name: str, key: str, needs: PromptNeeds, hint: str = "") -> None:
    """Refuse a config whose prompts the named model does not take.

    Args:
        name: The value of model.name=.
        key: The key that makes such prompts; the message begins with it.
        needs: What they need.
        hint: The end of the message.

    Raises:
        ConfigError: The model does not take them.
    """
    unmet = unmet_needs(segmenter_config(name).prompts, needs, f"model.name={name}")
    if unmet is not None:
        raise ConfigError(f"{key} {unmet}{hint}")
