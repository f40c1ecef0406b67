"""Pictures of a tiny segmenter, drawn while a real Trainer trains it."""

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

from efficientsam_pl.evaluation.config import ValidationConfig
from efficientsam_pl.models.config import (
    EncoderConfig,
    MaskDecoderConfig,
    PromptEncoderConfig,
    SegmenterConfig,
)
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.recipes.promptable import visualize
from efficientsam_pl.recipes.promptable.prompted_images import (
    LastRound,
    drawable,
    largest_apart,
    one_by_one,
    predict_all,
    visualized_protocols,
)
from efficientsam_pl.recipes.promptable.visualize import MaskVisualizer
from efficientsam_pl.structures import Label, MaskBatch, Prediction, Prompts
from efficientsam_pl.training.run.loggers import TensorBoardRunLogger
from efficientsam_pl.visualization.contact_sheet import SheetLayout
from efficientsam_pl.visualization.masks import CELL_PX, ProtocolMasks

SIDE, LOW, CLICKS = 64, 16, 3
CONFIG = SegmenterConfig(
    encoder=EncoderConfig(
        width=24, depth=1, heads=3, image_size=SIDE, position_grid=4, neck_channels=32
    ),
    prompts=PromptEncoderConfig(negative_clicks=True, mask_prompts=True),
    decoder=MaskDecoderConfig(mlp_width=32, iou_head_width=32),
)
KINDS = visualized_protocols(ValidationConfig(), SIDE, CLICKS)
LAYOUT = SheetLayout.for_cell(216)  # the largest of which six rows fit a screen, in steps of 8
ROW = LAYOUT.title_height + LAYOUT.cell + LAYOUT.gap  # of a square photo


def masked_images(count: int, seed: int) -> MaskBatch:
    """Noise with three squares of 8, 4 and 2 cells a side in three corners."""
    draw = np.random.default_rng(seed)
    masks = torch.zeros(count, 3, LOW, LOW, dtype=torch.bool)
    masks[:, 0, :8, :8] = masks[:, 1, 10:14, 10:14] = masks[:, 2, 0:2, 14:] = True
    boxes = torch.tensor([[0.0, 0, 31, 31], [40, 40, 55, 55], [56, 0, 63, 7]])
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    return MaskBatch(
        image=torch.from_numpy(draw.integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8)),
        content_hw=torch.full((count, 2), SIDE),
        masks=masks,
        boxes_xyxy_px=boxes.expand(count, 3, 4).clone(),
        clicks_px=middles[None, :, None].repeat(count, 1, CLICKS, 1),
        valid=torch.ones(count, 3, dtype=torch.bool),
        sample_key=torch.from_numpy(draw.integers(0, 2**62, count)),
        key=tuple(f"photo{i}" for i in range(count)),
    )


def segmenter(config: SegmenterConfig = CONFIG) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(config)


class Finetuning(L.LightningModule):
    """Stand-in with what the callback reads, and what it must leave as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.model = segmenter()
        self.modes: list[bool] = []
        self.draws: list[Tensor] = []

    def eval_model(self) -> nn.Module:
        return self.model

    def training_step(self, batch: MaskBatch, batch_idx: int) -> Tensor:
        self.modes.append(self.model.training)
        self.draws.append(torch.rand(1))
        prediction = self.model(batch.image, Prompts.of_boxes(batch.boxes_xyxy_px))
        return prediction.low_res_logits.square().mean()

    def validation_step(self, batch: MaskBatch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in (".*does not have many workers.*", ".*treespec, LeafSpec.*"):
            warnings.filterwarnings("ignore", message)
        yield


def train(folder: Path, *callbacks: L.Callback, steps: int = 4, accumulate: int = 2) -> Finetuning:
    """Validates after every second step."""
    task = Finetuning()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        val_check_interval=2 * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=1,
        log_every_n_steps=1,
        logger=TensorBoardRunLogger(folder, 0),
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = [masked_images(2, seed) for seed in range(steps * accumulate)]

    def loader(some: list[MaskBatch]) -> DataLoader[Any]:
        return DataLoader(some, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]

    trainer.fit(task, loader(batches), loader(batches[:1]))
    return task


def test_pictures_are_drawn_at_the_start_and_at_every_validation(tmp_path: Path) -> None:
    read: list[int] = []

    def shown() -> MaskBatch:
        read.append(1)
        return masked_images(2, seed=99)

    train(tmp_path, MaskVisualizer(tmp_path, shown, KINDS))
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["step-00000000.png", "step-00000002.png", "step-00000004.png"]
    assert read == [1]
    with Image.open(tmp_path / "pictures/step-00000002.png") as picture:
        # two images, each prompted with a box, a click and three clicks
        assert picture.size == (LAYOUT.left(4), LAYOUT.gap + LAYOUT.title_height + 6 * ROW)
        assert picture.mode == "RGB"
    events = EventAccumulator(str(tmp_path / "log"), {"images": 0}).Reload()
    assert [event.step for event in events.Images("pictures/masks")] == [0, 2, 4]


def test_training_goes_on_as_if_no_picture_had_been_drawn(tmp_path: Path) -> None:
    pictures = MaskVisualizer(tmp_path / "with", lambda: masked_images(2, 99), KINDS)
    one, other = train(tmp_path / "with", pictures), train(tmp_path / "without")
    assert one.modes == [True] * 8
    assert torch.equal(torch.stack(one.draws), torch.stack(other.draws))
    for name, value in other.state_dict().items():
        assert torch.equal(one.state_dict()[name], value), name


def test_image_without_a_valid_mask_is_left_out(tmp_path: Path) -> None:
    batch = masked_images(3, 99)
    damaged = replace(batch, valid=batch.valid & torch.tensor([True, False, True])[:, None])
    train(tmp_path, MaskVisualizer(tmp_path, lambda: damaged, KINDS), steps=1)
    with Image.open(tmp_path / "pictures/step-00000000.png") as picture:
        assert picture.height == LAYOUT.gap + LAYOUT.title_height + 6 * ROW


def test_nothing_is_drawn_where_all_images_are_damaged(tmp_path: Path) -> None:
    batch = masked_images(1, 99)
    damaged = replace(batch, valid=torch.zeros_like(batch.valid))
    train(tmp_path, MaskVisualizer(tmp_path, lambda: damaged, KINDS), steps=2)
    assert not (tmp_path / "pictures").exists()


def test_only_the_drawn_masks_are_decoded_and_images_are_encoded_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    point_counts: list[int] = []
    encode, decode = Segmenter.encode, Segmenter.decode

    def counted_encode(self: Segmenter, image: Tensor, *args: Any) -> Tensor:
        encoded.append(len(image))
        return encode(self, image, *args)

    def counted_decode(self: Segmenter, features: Tensor, prompts: Prompts) -> Prediction:
        point_counts.append(prompts.labels.shape[1])
        return decode(self, features, prompts)

    many = masked_images(2, 99)
    many = replace(
        many,
        masks=many.masks.repeat(1, 4, 1, 1),
        boxes_xyxy_px=many.boxes_xyxy_px.repeat(1, 4, 1),
        clicks_px=many.clicks_px.repeat(1, 4, 1, 1),
        valid=many.valid.repeat(1, 4),
    )
    pictures = MaskVisualizer(tmp_path, lambda: many, KINDS)
    monkeypatch.setattr(Segmenter, "encode", counted_encode)
    monkeypatch.setattr(Segmenter, "decode", counted_decode)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    pictures.on_train_start(trainer, Finetuning())
    # a box, a click, and a round for each of three clicks; of twelve masks three are drawn
    assert encoded == [1, 1]
    assert point_counts == [3] * (2 * 5)


def test_other_ranks_compute_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[bool] = []
    encode = Segmenter.encode

    def counted(self: Segmenter, *args: Any) -> Any:
        called.append(self.training)
        return encode(self, *args)

    monkeypatch.setattr(Segmenter, "encode", counted)
    monkeypatch.setattr(L.Trainer, "is_global_zero", property(lambda trainer: False))
    pictures = MaskVisualizer(tmp_path, lambda: masked_images(1, 99), KINDS)
    train(tmp_path, pictures, steps=1, accumulate=1)
    assert called == [False, True]  # the picture, then the training step
    assert not (tmp_path / "pictures").exists()


def test_work_is_done_aside(tmp_path: Path) -> None:
    entered: list[str] = []

    @contextmanager
    def paused() -> Iterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    def shown() -> MaskBatch:
        entered.append("read")
        return masked_images(1, 99)

    train(tmp_path, MaskVisualizer(tmp_path, shown, KINDS, paused), steps=2)
    assert entered == ["in", "read", "out", "in", "out"]


def test_largest_masks_that_hardly_overlap_are_chosen_by_hand() -> None:
    masks = torch.zeros(6, 10, 10, dtype=torch.bool)
    masks[0, :2, :5] = True  # 10 pixels
    masks[1, :6, :5] = True  # 30, holds the first
    masks[2, 5:, :8] = True  # 40, shares 5 of the 30
    masks[3, 0, 5:] = True  # 5
    masks[4, :3, 6:] = True  # 12, not valid
    valid = torch.tensor([True, True, True, True, False, True])  # the last is empty
    # 5 of 30 is more than a tenth, so the 10 take the place of the 30
    assert largest_apart(masks, valid, 3) == [2, 0, 3]
    assert largest_apart(masks, valid, 1) == [2]
    assert largest_apart(masks[:0], valid[:0], 3) == []


def test_image_alone_keeps_what_belongs_to_its_masks() -> None:
    batch = masked_images(3, 5)
    shuffled = replace(batch, masks=batch.masks[:, [2, 0, 1]])  # the largest comes second
    last = list(one_by_one(shuffled))[2]
    assert last.key == ("photo2",)
    assert torch.equal(last.masks, batch.masks[2:])
    order = [1, 2, 0]
    assert torch.equal(last.boxes_xyxy_px, batch.boxes_xyxy_px[2:, order])
    assert torch.equal(last.clicks_px, batch.clicks_px[2:, order])
    assert torch.equal(last.image, batch.image[2:])


def test_kinds_are_those_that_are_measured_and_can_be_shown() -> None:
    assert list(visualized_protocols(ValidationConfig(clicks=(1, 3, 5)), SIDE, 3)) == [
        "box",
        "1 click",
        "3 clicks",
    ]
    corrected = ValidationConfig(clicks=(1, 5), later_clicks="corrections")
    assert list(visualized_protocols(corrected, SIDE, 1)) == ["box", "1 click", "5 clicks"]


@pytest.mark.parametrize("later_clicks", ["random", "corrections"])
def test_prompts_are_the_tight_box_and_the_clicks(later_clicks: Any) -> None:
    validation = ValidationConfig(later_clicks=later_clicks)
    photo = next(one_by_one(masked_images(1, 0)))
    model = segmenter()
    with torch.no_grad():
        last_rounds = predict_all(model, visualized_protocols(validation, SIDE, CLICKS), photo)
    box, one, three = (drawable(photo, kind, last) for kind, last in last_rounds.items())
    # the picture is four times as large as the photo
    for number, corners in enumerate(photo.boxes_xyxy_px[0]):
        assert box.prompts[number].box_xyxy == tuple((4 * corners).tolist())
        assert box.prompts[number].points_xy == ()
    for number, (x, y) in enumerate(photo.clicks_px[0, :, 0].tolist()):
        assert one.prompts[number].points_xy == ((4 * x, 4 * y),)
        assert three.prompts[number].points_xy[0] == (4 * x, 4 * y)
        assert three.prompts[number].box_xyxy is None
        assert len(three.prompts[number].labels) == 3
    if later_clicks == "random":
        assert all(prompt.labels == (1, 1, 1) for prompt in three.prompts)


def last_round(logits: Tensor, prompts: Prompts) -> LastRound:
    return LastRound(prompts, Prediction(logits[None, :, None], torch.full((1, 1, 1), 0.25)))


def one_mask() -> MaskBatch:
    batch = masked_images(1, 0)
    return replace(
        batch,
        masks=batch.masks[:, :1],
        boxes_xyxy_px=batch.boxes_xyxy_px[:, :1],
        clicks_px=batch.clicks_px[:, :1],
        valid=batch.valid[:, :1],
    )


def test_answer_is_compared_where_there_is_image() -> None:
    """The lower half is padding: what is answered there does not count."""
    photo = replace(one_mask(), content_hw=torch.tensor([[SIDE // 2, SIDE]]))
    logits = torch.full((1, LOW, LOW), -5.0)
    logits[0, :, :4] = 5.0  # of the mask's 8 x 8 cells the left half, and on below
    drawn = drawable(photo, "box", last_round(logits, Prompts.of_boxes(photo.boxes_xyxy_px)))
    assert drawn.image.shape == (CELL_PX // 2, CELL_PX, 3)
    assert drawn.iou == (0.5,)
    assert drawn.predicted_iou == (0.25,)
    # A cell is 16 pixels of the picture; edges lie where bilinear interpolation is zero. The last
    # row of cells is left out, in which a mask that ends there has a round corner
    columns = np.arange(CELL_PX)
    assert (drawn.truth[0, :-16] == (columns < 8 * 16)).all()
    assert (drawn.predicted[0, :-16] == (columns < 4 * 16)).all()


def test_negative_clicks_and_corners_are_told_apart() -> None:
    photo = one_mask()
    points = torch.tensor([[[[8.0, 4.0], [16.0, 12.0], [1.0, 2.0], [-1.0, -1.0]]]])
    labels = torch.tensor(
        [[[Label.TOP_LEFT, Label.BOTTOM_RIGHT, Label.NEGATIVE, Label.PADDING]]], dtype=torch.int64
    )
    logits = torch.zeros(1, LOW, LOW)
    (prompt,) = drawable(photo, "box", last_round(logits, Prompts(points, labels))).prompts
    assert prompt.box_xyxy == (32.0, 16.0, 64.0, 48.0)
    assert (prompt.points_xy, prompt.labels) == (((4.0, 8.0),), (Label.NEGATIVE,))


@pytest.mark.parametrize(
    ("content_hw", "size"),
    [((SIDE, 1), (CELL_PX, 4)), ((1, SIDE), (4, CELL_PX)), ((1, 1), (CELL_PX, CELL_PX))],
)
def test_extreme_image_is_drawn(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content_hw: tuple[int, int],
    size: tuple[int, int],
) -> None:
    drawn: list[ProtocolMasks] = []
    draw = visualize.mask_sheet
    monkeypatch.setattr(visualize, "mask_sheet", lambda some: drawn.extend(some) or draw(some))
    thin = replace(masked_images(1, 0), content_hw=torch.tensor([content_hw]))
    train(tmp_path, MaskVisualizer(tmp_path, lambda: thin, KINDS), steps=1)
    assert [one.image.shape[:2] for one in drawn] == [size] * 3
