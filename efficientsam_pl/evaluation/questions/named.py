"""The protocols by name, as in configs and results."""

from __future__ import annotations

import re

from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.questions.asking import InstanceProtocol
from efficientsam_pl.evaluation.questions.boxes import TightBox
from efficientsam_pl.evaluation.questions.clicks import (
    CentreClick,
    IterativeClicks,
    RandomClicks,
)

NAMES = ("box", "click_center", "click_random_K", "click_iterative_K")
_COUNTED: dict[str, type[RandomClicks] | type[IterativeClicks]] = {
    "random": RandomClicks,
    "iterative": IterativeClicks,
}


def protocol(name: str) -> InstanceProtocol:
    """The protocol of this name; K is a number of clicks from 1 on.

    Raises:
        UserError: No protocol has this name.
    """
    if name == "box":
        return TightBox()
    if name == "click_center":
        return CentreClick()
    told = re.fullmatch(r"click_(random|iterative)_([1-9]\d{0,2})", name)
    if told is None:
        known = ", ".join(NAMES)
        raise UserError(f"unknown protocol {name!r}; known are {known} (K clicks, from 1 on)")
    return _COUNTED[told[1]](int(told[2]))
