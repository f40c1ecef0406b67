"""A loss and the named terms it is made of, as one record."""

from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

L = TypeVar("L", bound="LossTerms")


@dataclass(frozen=True)
class LossTerms:
    """The loss that is trained on; each further field of a subclass is a term of that name."""

    total: Float[Tensor, "*shape"]

    def stacked(self) -> Float[Tensor, "values *shape"]:
        """All fields as one tensor, the total first."""
        return torch.stack([getattr(self, field.name) for field in fields(self)])

    @classmethod
    def from_stacked(cls: type[L], values: Float[Tensor, "values *shape"]) -> L:
        """Undo `stacked`."""
        return cls(*values)

    def named(self, prefix: str) -> dict[str, Tensor]:
        """Name every term for the log, detached; the total is logged on its own."""
        return {f"{prefix}{n}": v.detach() for n, v in vars(self).items() if n != "total"}
