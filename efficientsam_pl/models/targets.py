"""Pretraining targets: a teacher's features, computed online or stored, or normalised pixels.

The training step calls its target without knowing which one it is.
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
    """Maps a batch to one vector per token of the student's grid, row-major, without gradient."""

    @property
    def width(self) -> int:
        """Channels of the target."""

    @property
    def teacher(self) -> FrozenTeacher | None:
        """Teacher network to move and shard, if there is one."""

    def __call__(self, batch: ImageBatch) -> Float[Tensor, "b n c"]:
        """Return the target features of a batch, on its device."""


@dataclass(frozen=True, eq=False)
class OnlineTarget:
    """Features of a teacher that runs on the student's crops."""

    teacher: FrozenTeacher

    @property
    def width(self) -> int:
        """Implement Target."""
        return self.teacher.width

    def __call__(self, batch: ImageBatch) -> Float[Tensor, "b n c"]:
        """Implement Target."""
        features: Tensor = self.teacher(batch.image)
        return features


@dataclass(frozen=True)
class StoredTarget:
    """Features that were stored beforehand and read with the images."""

    width: int
    teacher: None = None

    def __call__(self, batch: ImageBatch) -> Float[Tensor, "b n c"]:
        """Implement Target."""
        assert batch.features is not None, "the dataset of stored features must provide them"
        return batch.features


@dataclass(frozen=True)
class PixelTarget:
    """Normalised pixels of each patch (MAE, section 3)."""

    patch_size: int
    teacher: None = None

    @property
    def width(self) -> int:
        """Implement Target."""
        return 3 * self.patch_size**2

    @torch.no_grad()
    def __call__(self, batch: ImageBatch) -> Float[Tensor, "b n c"]:
        """Implement Target."""
        return patch_targets(batch.image, self.patch_size)


def build_target(config: TeacherConfig, student: EncoderConfig, stored: bool) -> Target:
    """Build the target that a config describes.

    Args:
        config: The teacher's config.
        student: The student encoder, which determines the token grid.
        stored: Whether the batch carries stored features.

    Raises:
        WeightsError: The teacher's file cannot be read or belongs to another model.
    """
    if config.kind == "pixels":
        return PixelTarget(student.patch_size)
    if stored:
        return StoredTarget(feature_width(config))
    return OnlineTarget(FrozenTeacher(config, student.grid()))
