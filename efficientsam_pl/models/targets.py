"""What the student learns to predict of a batch: a teacher's features, online or stored, or pixels.

A task calls its target and does not know which it is.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from efficientsam_pl.models.config import EncoderConfig, TeacherConfig
from efficientsam_pl.models.patchify import patch_targets
from efficientsam_pl.models.teacher import FrozenTeacher, feature_width
from efficientsam_pl.structures import ImageBatch


@runtime_checkable
class Target(Protocol):
    """Maps a batch to one vector a token of the student's grid, row-major; without a gradient."""

    @property
    def width(self) -> int:
        """Channels."""

    @property
    def teacher(self) -> FrozenTeacher | None:
        """The network behind it, to be moved and sharded; None where there is none."""

    def __call__(self, batch: ImageBatch) -> Float[Tensor, "b n c"]:
        """The features of a batch, on its device."""


@dataclass(frozen=True, eq=False)
class OnlineTarget:
    """The teacher sees each crop as the student does."""

    teacher: FrozenTeacher

    @property
    def width(self) -> int:
        """See Target."""
        return self.teacher.width

    def __call__(self, batch: ImageBatch) -> Float[Tensor, "b n c"]:
        """See Target."""
        features: Tensor = self.teacher(batch.image)
        return features


@dataclass(frozen=True)
class StoredTarget:
    """The features were read with the photos."""

    width: int
    teacher: None = None

    def __call__(self, batch: ImageBatch) -> Float[Tensor, "b n c"]:
        """See Target."""
        assert batch.features is not None, "a stream of stored features gives them"
        return batch.features


@dataclass(frozen=True)
class PixelTarget:
    """The photo's own patches, each normalised (MAE, section 3)."""

    patch_size: int
    teacher: None = None

    @property
    def width(self) -> int:
        """See Target."""
        return 3 * self.patch_size**2

    @torch.no_grad()
    def __call__(self, batch: ImageBatch) -> Float[Tensor, "b n c"]:
        """See Target."""
        return patch_targets(batch.image, self.patch_size)


def build_target(config: TeacherConfig, student: EncoderConfig, stored: bool) -> Target:
    """The target that a config describes.

    Args:
        config: Of the teacher.
        student: Whose grid the features lie on.
        stored: Whether they come with the batch.

    Raises:
        WeightsError: The teacher's file cannot be read or is of another model.
    """
    if config.kind == "pixels":
        return PixelTarget(student.patch_size)
    if stored:
        return StoredTarget(feature_width(config))
    return OnlineTarget(FrozenTeacher(config, student.grid()))
