"""Names of a detector's parameters in detectron2's Mask R-CNN with ViTDet."""

import re
from collections.abc import Mapping

from torch import Tensor

from efficientsam_pl.models.backbone_weights import TRUNK
from efficientsam_pl.models.detection.pyramid import detectron2_level_name

_BACKBONE = "backbone.net."
_PYRAMID = "pyramid."
_PREFIXES = {  # ours, detectron2's
    TRUNK: _BACKBONE,
    "rpn_head.conv": "proposal_generator.rpn_head.conv.conv",
    "rpn_head.": "proposal_generator.rpn_head.",
    "box_head.fc1.": "roi_heads.box_head.fc1.",
    "box_head.": "roi_heads.box_predictor.",
    "mask_head.": "roi_heads.mask_head.",
}
_CONVOLUTIONS = {"box_head": "roi_heads.box_head.conv", "mask_head": "roi_heads.mask_head.mask_fcn"}
# Buffers that detectron2 registers besides weights
_CONSTANTS = ("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.")
_MODULES = ("proposal_generator.", "roi_heads.")


def detectron2_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a detector's state dict to the names of detectron2's Mask R-CNN with ViTDet."""
    return {_theirs(name): tensor for name, tensor in state.items()}


def from_detectron2_names(
    state: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Undo `detectron2_names`; other names pass unchanged.

    Args:
        state: A file's tensors; `proposal_generator.` and `roi_heads.` may be missing.
        ours: State dict of a detector, for its names.
    """
    names = {_theirs(name): name for name in ours}
    names |= {_without_module(theirs): name for theirs, name in names.items()}
    return {
        names.get(name, name): tensor
        for name, tensor in state.items()
        if not name.startswith(_CONSTANTS)
    }


def _theirs(name: str) -> str:
    if name.startswith(_PYRAMID):
        return f"backbone.{detectron2_level_name(name.removeprefix(_PYRAMID))}"
    if head := re.match(r"(\w+)\.convolutions\.(\d+)\.(\w+)$", name):
        number, offset = divmod(int(head[2]), 3)  # a convolution, its norm and ReLU
        return f"{_CONVOLUTIONS[head[1]]}{number + 1}.{'norm.' if offset else ''}{head[3]}"
    for ours, theirs in _PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _without_module(name: str) -> str:
    for prefix in _MODULES:
        name = name.removeprefix(prefix)
    return name
