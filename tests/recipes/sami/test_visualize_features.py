"""Pictures of a tiny student, drawn while a real Trainer trains it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from efficientsam_pl.models.config import EncoderConfig, SamiConfig
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.recipes.sami.visualize import FeatureVisualizer
from efficientsam_pl.structures import ImageBatch
from efficientsam_pl.training.run.loggers import TensorBoardRunLogger

SIDE, PATCH, CHANNELS = 64, 16, 12
CONFIG = SamiConfig(
    student=EncoderConfig(width=24, depth=1, heads=3, image_size=SIDE, position_grid=4),
    decoder_depth=1,
    decoder_width=32,
    decoder_heads=2,
)


def photos(count: int, seed: int) -> ImageBatch:
    draw = np.random.default_rng(seed)
    image = draw.integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8)
    return ImageBatch(
        torch.from_numpy(image),
        torch.from_numpy(draw.integers(0, 2**62, count)),
        torch.ones(count, dtype=torch.bool),
        tuple(f"photo{i}" for i in range(count)),
    )


class Pretraining(L.LightningModule):
    """Stand-in with what the callback reads, and what it must leave as it was."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Sami(CONFIG, CHANNELS)
        self.modes: list[bool] = []
        self.draws: list[Tensor] = []

    def target(self, batch: ImageBatch) -> Tensor:
        """The mean colours of each patch's quarters."""
        pooled = nn.functional.avg_pool2d(batch.image.float() / 255, PATCH // 2)
        return nn.functional.unfold(pooled, kernel_size=2, stride=2).transpose(1, 2)

    def eval_model(self) -> nn.Module:
        return self.model

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        self.modes.append(self.model.training)
        self.draws.append(torch.rand(1))
        predicted, _ = self.model(batch.image, batch.sample_key)
        return (predicted - self.target(batch)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in (".*does not have many workers.*", ".*treespec, LeafSpec.*"):
            warnings.filterwarnings("ignore", message)
        yield


def train(folder: Path, *callbacks: L.Callback, steps: int = 5, accumulate: int = 2) -> Pretraining:
    task = Pretraining()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        log_every_n_steps=1,
        logger=TensorBoardRunLogger(folder, 0),
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = [photos(2, seed) for seed in range(steps * accumulate)]
    trainer.fit(task, DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch))
    return task


def test_pictures_are_drawn_when_due_and_at_the_end(tmp_path: Path) -> None:
    read: list[int] = []

    def shown() -> ImageBatch:
        read.append(1)
        return photos(3, seed=99)

    train(tmp_path, FeatureVisualizer(tmp_path, 2, shown))
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["step-00000002.png", "step-00000004.png", "step-00000005.png"]
    assert read == [1]
    with Image.open(tmp_path / "pictures/step-00000002.png") as picture:
        # photos of 64 pixels are shown four times as large: cells of 256, gaps of 13, titles of 34
        assert picture.size == (13 + 4 * (256 + 13), 13 + 34 + 3 * (34 + 256 + 13))
        assert picture.mode == "RGB"
    events = EventAccumulator(str(tmp_path / "log"), {"images": 0}).Reload()
    assert [event.step for event in events.Images("pictures/features")] == [2, 4, 5]


def test_training_goes_on_as_if_no_picture_had_been_drawn(tmp_path: Path) -> None:
    one = train(tmp_path / "with", FeatureVisualizer(tmp_path / "with", 1, lambda: photos(3, 99)))
    other = train(tmp_path / "without")
    assert one.modes == [True] * 10
    assert torch.equal(torch.stack(one.draws), torch.stack(other.draws))
    for name, value in other.state_dict().items():
        assert torch.equal(one.state_dict()[name], value), name


def test_image_that_could_not_be_read_is_left_out(tmp_path: Path) -> None:
    batch = replace(photos(3, 99), valid=torch.tensor([True, False, True]))
    train(tmp_path, FeatureVisualizer(tmp_path, 9, lambda: batch), steps=1, accumulate=1)
    with Image.open(tmp_path / "pictures/step-00000001.png") as picture:
        assert picture.height == 13 + 34 + 2 * (34 + 256 + 13)


def test_pixels_are_painted_where_they_were_masked(tmp_path: Path) -> None:
    def white(predicted: Tensor, image: Tensor) -> Tensor:
        assert predicted.shape == (2, 16, CHANNELS)
        return torch.full_like(image, 255)

    pictures = FeatureVisualizer(tmp_path, 9, lambda: photos(2, 99), paint=white)
    train(tmp_path, pictures, steps=1, accumulate=1)
    with Image.open(tmp_path / "pictures/step-00000001.png") as picture:
        assert picture.width == 13 + 3 * (256 + 13)
        first = np.array(picture)[13 + 34 + 34 :, 13 + 2 * (256 + 13) :][:256, :256]
    # twelve of sixteen patches are masked
    squares = first.reshape(4, 64, 4, 64, 3).swapaxes(1, 2).reshape(16, -1)
    assert (squares == 255).all(1).sum() == 12


def test_work_is_done_aside(tmp_path: Path) -> None:
    entered: list[str] = []

    @contextmanager
    def paused() -> Iterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    def shown() -> ImageBatch:
        entered.append("read")
        return photos(2, 99)

    train(tmp_path, FeatureVisualizer(tmp_path, 9, shown, paused=paused), steps=1)
    assert entered == ["in", "read", "out"]


def test_other_ranks_compute_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[bool] = []

    def forward(self: Sami, *args: Any, **kwargs: Any) -> Any:
        called.append(self.training)
        return whole(self, *args, **kwargs)

    whole = Sami.forward
    monkeypatch.setattr(Sami, "forward", forward)
    monkeypatch.setattr(L.Trainer, "is_global_zero", property(lambda trainer: False))
    train(tmp_path, FeatureVisualizer(tmp_path, 9, lambda: photos(2, 99)), steps=1, accumulate=1)
    assert called == [True, False]  # the training step, then the picture
    assert not (tmp_path / "pictures").exists()
