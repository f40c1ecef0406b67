"""Train small Segment Anything models, and use them.

The few names that users import are loaded when first asked for, so that `import efficientsam_pl`
stays free of torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efficientsam_pl.inference.automask.config import EverythingConfig
    from efficientsam_pl.inference.automask.generator import generate_masks
    from efficientsam_pl.inference.hub import load_model
    from efficientsam_pl.inference.predictor import Predictor, SamPredictor

__all__ = ["EverythingConfig", "Predictor", "SamPredictor", "generate_masks", "load_model"]
_HOMES = {
    "EverythingConfig": "efficientsam_pl.inference.automask.config",
    "generate_masks": "efficientsam_pl.inference.automask.generator",
    "load_model": "efficientsam_pl.inference.hub",
    "Predictor": "efficientsam_pl.inference.predictor",
    "SamPredictor": "efficientsam_pl.inference.predictor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
