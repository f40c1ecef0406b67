"""An image, its boxes and clicks reach the model alike in training and in use."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from efficientsam_pl.data.config import MaskSelectionConfig
from efficientsam_pl.data.datasets.masks import Frame, MaskDataset
from efficientsam_pl.data.packing.images import MaskedImage, pack_images
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import MASK_SUFFIXES, annotation_of
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.geometry import ResizeRule
from efficientsam_pl.inference.predictor import Predictor
from efficientsam_pl.models.config import EncoderConfig, SegmenterConfig
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.rle import encode
from efficientsam_pl.structures import MaskBatch, Prediction, Prompts

SIDE = 64
ENCODER = EncoderConfig(
    width=24, depth=1, heads=3, image_size=SIDE, position_grid=4, neck_channels=32
)


class Listener(Segmenter):
    """Remembers the image and the prompts that it gets."""

    shown: tuple[Tensor, Tensor | None]
    prompts: Prompts

    def encode(self, image: Tensor, content_hw: Tensor | None = None) -> Tensor:
        self.shown = (image, content_hw)
        return super().encode(image, content_hw)

    def decode(self, features: Tensor, prompts: Prompts) -> Prediction:
        self.prompts = prompts
        return super().decode(features, prompts)


def smooth(height: int, width: int) -> np.ndarray:
    """An image without fine detail, so that its JPEG is nearly itself."""
    draw = np.random.default_rng(height * width).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(draw).resize((width, height), Image.Resampling.BICUBIC))


def blob(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height - height // 5, width // 3 : width - 1] = True
    return mask


def batch_of(folder: Path, pixels: np.ndarray, mask: np.ndarray, rule: ResizeRule) -> MaskBatch:
    """The training batch of an image with one mask."""
    pack_images([MaskedImage("photo", pixels, (annotation_of(encode(mask)),))], folder, "set")
    dataset = MaskDataset(
        SampleReader([open_shards(f"{folder}/set-*.tar")], MASK_SUFFIXES),
        MaskSelectionConfig(masks_per_image=1, clicks=5),
        Frame(SIDE, rule, exact=True),
        seed=0,
    )
    return dataset.collate(dataset.__getitems__([SampleRef(0, 0)]))


def stored(folder: Path) -> np.ndarray:
    """The image as the shard holds it."""
    [tar] = folder.glob("set-*.tar")
    data = tar.read_bytes()
    return np.array(Image.open(io.BytesIO(data[data.index(b"\xff\xd8") :])).convert("RGB"))


@pytest.mark.parametrize("rule", ["squash", "pad"])
@pytest.mark.parametrize(
    "hw", [(64, 64), (37, 91), (91, 37), (129, 65), (201, 333), (5, 7), (1, 50)], ids=str
)
def test_training_and_predictor_prompt_the_model_alike(
    tmp_path: Path, hw: tuple[int, int], rule: ResizeRule
) -> None:
    mask = blob(*hw)
    batch = batch_of(tmp_path, smooth(*hw), mask, rule)
    assert batch.valid.tolist() == [[True]]

    torch.manual_seed(0)
    model = Listener(SegmenterConfig(encoder=ENCODER, resize=rule))
    embedded = Predictor(model).embed(stored(tmp_path))
    image, content_hw = model.shown
    assert image.shape == batch.image.shape
    assert float((image - batch.image.float()).abs().max()) <= 1  # bytes are rounded
    assert content_hw is not None
    assert content_hw.tolist() == batch.content_hw.tolist()

    rows, columns = np.nonzero(mask)
    box = [[columns.min(), rows.min(), columns.max(), rows.max()]]
    embedded.predict(boxes=box)
    assert model.prompts.boxes_xyxy_px is not None
    torch.testing.assert_close(model.prompts.boxes_xyxy_px, batch.boxes_xyxy_px)

    clicks = embedded.resize.points_back(batch.clicks_px[0])
    x, y = clicks[0].round().long().unbind(-1)
    torch.testing.assert_close(clicks[0], torch.stack([x, y], -1).float(), atol=1e-3, rtol=0)
    assert bool(mask[y, x].all())
    embedded.predict(points=torch.stack([x, y], -1)[None])
    torch.testing.assert_close(model.prompts.points_px, batch.clicks_px)
