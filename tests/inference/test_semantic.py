"""A class for every pixel: resizing, padding, cropping, and the way back to the image."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from efficientsam_pl.inference.semantic import best_classes, segment_image
from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.semantic.config import MaskHeadConfig, SemanticConfig
from efficientsam_pl.models.semantic.mask2former import SemanticSegmenter

_HEAD = MaskHeadConfig(width=32, heads=2, queries=2, pixel_layers=1, layers=1, ffn=8, pixel_ffn=8)
_SHAPE = SemanticConfig(
    vit=EncoderConfig(width=32, depth=1, heads=2, image_size=64), classes=3, head=_HEAD
)


class ByColour(SemanticSegmenter):
    """The scores of the three classes are red, green and blue."""

    def segment(self, image: Tensor) -> Tensor:
        self.seen = image
        return image


@pytest.fixture(scope="module")
def model() -> ByColour:
    return ByColour(_SHAPE).eval()


def stripes(height: int, width: int) -> np.ndarray:
    labels = np.zeros((height, width), np.uint8)
    labels[:, width // 3 :] = 1
    labels[height // 2 :, 2 * width // 3 :] = 2
    return labels


@pytest.mark.parametrize(
    ("image_hw", "resized", "padded"),
    [
        ((75, 130), (64, 111), (64, 128)),
        ((201, 90), (143, 64), (160, 64)),
        ((40, 40), (64, 64), (64, 64)),
        ((20, 100), (51, 256), (64, 256)),  # at most four times the short side
    ],
)
def test_each_pixel_gets_the_class_that_is_there(
    image_hw: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int], model: ByColour
) -> None:
    truth = stripes(*image_hw)
    image = 200 * np.eye(3, dtype=np.uint8)[truth] + 10
    found = segment_image(model, image)
    assert model.seen.shape == (1, 3, *padded)
    beyond = model.seen[0, :, resized[0] :], model.seen[0, :, :, resized[1] :]
    normal = [model.pixel_norm(part[None].contiguous()) for part in beyond]
    assert all(not part.any() for part in normal)
    assert found.labels.shape == image_hw
    inner = np.ones(image_hw, bool)  # a border is blurred over two pixels
    for axis in (0, 1):
        for shift in (-2, 2):
            inner &= np.roll(truth, shift, axis) == truth
    assert np.array_equal(found.labels.numpy()[inner], truth[inner])
    assert inner.mean() > 0.6
    assert float(found.scores.max()) == pytest.approx(210, abs=1)


def test_classes_resized_in_parts_are_those_resized_together() -> None:
    scores = torch.rand(40, 9, 14, generator=torch.Generator().manual_seed(0))
    together = functional.interpolate(scores[None], (31, 50), mode="bilinear")[0]
    found = best_classes(scores, (31, 50))
    assert torch.equal(found.labels.long(), together.argmax(0))
    assert torch.equal(found.scores, together.amax(0))
    equal = best_classes(torch.ones(40, 2, 2), (2, 2))
    assert not equal.labels.any()  # the first of equal ones, as argmax


def test_a_real_model_segments_an_image_of_any_size() -> None:
    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(0, 256, (37, 91, 3), dtype=np.uint8)
    found = segment_image(SemanticSegmenter(_SHAPE).eval(), image)
    assert found.labels.shape == (37, 91)
    assert int(found.labels.max()) < 3
