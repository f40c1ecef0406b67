"""Descriptions of the protocols' prompts and mask rules, as stored in every result."""

from __future__ import annotations

from typing import Any

_PAPER = "EfficientSAM, arXiv 2312.00863v1, 4.3"
_SAM = "SAM, arXiv 2304.02643, 7.1 and D.1"


def described(name: str, feeds_back: bool) -> dict[str, Any]:
    """Return the description, source and mask rule of a protocol.

    Args:
        name: Name of the protocol, as in configs.
        feeds_back: Whether masks are fed back between clicks: the model takes mask prompts.

    Raises:
        ValueError: There is no such protocol.
    """
    kind, _, count = name.rpartition("_")
    rule = "predicted_iou"
    if name == "box":
        text, source = "the tight box of the annotated mask", _PAPER
    elif name == "click_center":
        text, source = "the pixel of the annotated mask that is farthest from its edge", _SAM
    elif kind == "click_random":
        text, source = f"{count} uniform random pixels of the annotated mask, all at once", _PAPER
    elif kind == "click_iterative":
        text = (
            f"{count} clicks, the first in the centre, each later one farthest from the edge of "
            "the larger error region"
        )
        source = _SAM
        if feeds_back and int(count) > 1:
            rule = "predicted_iou, then token_0 with the mask fed back"
    elif name == "detector_boxes":
        text, source = "boxes of a detector, which keep its categories and scores", _PAPER
    else:
        raise ValueError(f"no protocol is called {name}")
    return {"description": text, "source": source, "mask_rule": rule}
