"""The protocols by name, as in configs and results."""

from __future__ import annotations

from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.config import PROTOCOL_NAME, PROTOCOL_NAMES
from efficientsam_pl.evaluation.protocols.base import InstanceProtocol
from efficientsam_pl.evaluation.protocols.clicks import (
    CentreClick,
    IterativeClicks,
    RandomClicks,
)
from efficientsam_pl.evaluation.protocols.tight_box import TightBox

_COUNTED: dict[str, type[RandomClicks] | type[IterativeClicks]] = {
    "random": RandomClicks,
    "iterative": IterativeClicks,
}


def protocol(name: str) -> InstanceProtocol:
    """Build the protocol with this name; K is a number of clicks from 1 on.

    Raises:
        UserError: No protocol has this name.
    """
    if not PROTOCOL_NAME.fullmatch(name):
        raise UserError(
            f"unknown protocol {name!r}; known are {PROTOCOL_NAMES} (K clicks, from 1 on)"
        )
    if name == "box":
        return TightBox()
    if name == "click_center":
        return CentreClick()
    _, kind, count = name.split("_")
    return _COUNTED[kind](int(count))
