"""Train small Segment Anything models, and use them.

The public names are imported lazily, so that `import efficientsam_pl` does not import torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efficientsam_pl.inference.automask.config import EverythingConfig
    from efficientsam_pl.inference.automask.generator import generate_masks
    from efficientsam_pl.inference.hub import load_model
    from efficientsam_pl.inference.predictor import Predictor
    from efficientsam_pl.inference.sam_predictor import SamPredictor

__all__ = ["EverythingConfig", "Predictor", "SamPredictor", "generate_masks", "load_model"]
_MODULES = {
    "EverythingConfig": "efficientsam_pl.inference.automask.config",
    "generate_masks": "efficientsam_pl.inference.automask.generator",
    "load_model": "efficientsam_pl.inference.hub",
    "Predictor": "efficientsam_pl.inference.predictor",
    "SamPredictor": "efficientsam_pl.inference.sam_predictor",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)
