"""One batch, three targets; the training step calls each alike."""

import pytest
import torch

from efficientsam_pl.models.config import EncoderConfig, TeacherConfig
from efficientsam_pl.models.targets import OnlineTarget, PixelTarget, StoredTarget, build_target
from efficientsam_pl.structures import ImageBatch

STUDENT = EncoderConfig(width=24, depth=1, heads=3, image_size=64)
SAM = TeacherConfig(
    encoder=EncoderConfig(
        kind="sam_vit", width=24, depth=1, heads=3, neck_channels=16, position_grid=64
    ),
    image_size=64,
    precision="fp32",
)


def batch(features: torch.Tensor | None = None) -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    keys = torch.zeros(2, dtype=torch.int64)
    return ImageBatch(image, keys, keys == 0, ("a", "b"), (), features)


@pytest.mark.parametrize(
    ("config", "stored", "kind", "width"),
    [
        (SAM, False, OnlineTarget, 16),
        (SAM, True, StoredTarget, 16),
        (TeacherConfig(kind="pixels"), False, PixelTarget, 3 * 16 * 16),
    ],
    ids=["online", "stored", "pixels"],
)
def test_every_target_gives_a_vector_a_token(
    config: TeacherConfig, stored: bool, kind: type, width: int
) -> None:
    target = build_target(config, STUDENT, stored)
    assert isinstance(target, kind)
    assert target.width == width
    assert (target.teacher is not None) == (kind is OnlineTarget)
    features = target(batch(torch.ones(2, 16, 16) if stored else None))
    assert features.shape == (2, 16, width)
    assert not features.requires_grad


def test_stored_features_are_passed_on_as_they_are() -> None:
    features = torch.randn(2, 16, 16)
    assert build_target(SAM, STUDENT, stored=True)(batch(features)) is features


def test_online_target_is_the_teacher_on_the_crops() -> None:
    target = build_target(SAM, STUDENT, stored=False)
    assert target.teacher is not None
    assert torch.equal(target(batch()), target.teacher(batch().image))
