"""Masked samples from tar bytes to batches, and how corrupt ones are handled."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientsam_pl.data.config import MaskCropConfig, MaskSelectionConfig
from efficientsam_pl.data.dataloaders import inference_loader
from efficientsam_pl.data.datasets.base import SampleFaultError
from efficientsam_pl.data.datasets.masks import Frame, MaskDataset
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import RankShard, SampleRef
from efficientsam_pl.data.schema import MASK_SUFFIXES
from efficientsam_pl.data.shards import ShardSet, open_shards
from efficientsam_pl.data.transforms import random_crop

TarOf = Callable[[Path, dict[str, bytes]], Path]
HW = (40, 60)
SELECTION = MaskSelectionConfig(masks_per_image=4, clicks=5, max_area=1.0)


def masked(
    index: ShardSet, selection: MaskSelectionConfig = SELECTION, rule: str = "squash"
) -> MaskDataset:
    reader = SampleReader([index], MASK_SUFFIXES)
    return MaskDataset(reader, selection, Frame(64, rule), seed=3)  # type: ignore[arg-type]


def to_image(points: Tensor) -> np.ndarray:
    """Model pixels back to pixels of the 40 x 60 image."""
    return (points / torch.tensor([64 / 60, 64 / 40])).numpy()


@pytest.mark.parametrize("epoch", range(3))
def test_clicks_and_boxes_are_of_the_masks_at_image_precision(
    rings: tuple[ShardSet, list[list[np.ndarray]]], epoch: int
) -> None:
    index, masks = rings
    for number, truth in enumerate(masks[:4]):  # up to four masks: all are taken, in order
        content = masked(index)[SampleRef(epoch, number)].content
        assert content is not None
        assert len(content.masks) == len(truth)
        for clicks, box, mask in zip(
            to_image(content.clicks_px),
            to_image(content.boxes_xyxy_px.unflatten(1, (2, 2))),
            truth,
            strict=True,
        ):
            np.testing.assert_allclose(clicks, clicks.round(), atol=1e-4)  # whole pixels
            assert all(mask[y, x] for x, y in clicks.round().astype(int))
            ys, xs = np.nonzero(mask)
            np.testing.assert_allclose(box, [[xs.min(), ys.min()], [xs.max(), ys.max()]], atol=1e-4)


def test_clicks_are_uniform_over_the_mask(
    rings: tuple[ShardSet, list[list[np.ndarray]]],
) -> None:
    index, masks = rings
    dataset = masked(index, MaskSelectionConfig(masks_per_image=1, clicks=50, max_area=1.0))
    clicks = [dataset[SampleRef(epoch, 0)].content for epoch in range(40)]
    xy = np.concatenate([to_image(c.clicks_px)[0] for c in clicks if c is not None])
    xs = np.nonzero(masks[0][0])[1]
    deviation = xs.std() / np.sqrt(len(xy))
    assert xy[:, 0].mean() == pytest.approx(xs.mean(), abs=4 * deviation)
    left = (xs < np.median(xs)).mean()
    assert (xy[:, 0].round() < np.median(xs)).mean() == pytest.approx(left, abs=0.05)


def test_flip_moves_image_masks_boxes_and_clicks_together(
    rings: tuple[ShardSet, list[list[np.ndarray]]],
) -> None:
    index, _ = rings
    straight = masked(index)[SampleRef(0, 2)].content
    flipped = masked(
        index, MaskSelectionConfig(masks_per_image=4, clicks=5, max_area=1.0, flip=1.0)
    )[SampleRef(0, 2)].content
    assert straight is not None
    assert flipped is not None
    difference = (flipped.image.flip(-1).int() - straight.image.int()).abs()
    assert int(difference.max()) <= 1  # rounding of the resize
    assert torch.equal(flipped.masks.flip(-1), straight.masks)
    step = 64 / 60
    last = 59 * step
    torch.testing.assert_close(flipped.clicks_px[..., 0], last - straight.clicks_px[..., 0])
    torch.testing.assert_close(flipped.clicks_px[..., 1], straight.clicks_px[..., 1])
    x0, y0, x1, y1 = straight.boxes_xyxy_px.unbind(-1)
    torch.testing.assert_close(
        flipped.boxes_xyxy_px, torch.stack([last - x1, y0, last - x0, y1], dim=-1)
    )


def test_half_of_the_images_are_flipped(
    rings: tuple[ShardSet, list[list[np.ndarray]]],
) -> None:
    index, _ = rings
    half = masked(index, MaskSelectionConfig(masks_per_image=4, clicks=5, max_area=1.0, flip=0.5))
    never = masked(index)
    flips = 0
    for epoch in range(24):
        first_, other = half[SampleRef(epoch, 0)].content, never[SampleRef(epoch, 0)].content
        assert first_ is not None
        assert other is not None
        flips += not torch.equal(first_.image, other.image)
    assert 4 <= flips <= 20


@pytest.mark.parametrize("rule", ["squash", "pad"])
def test_sample_is_the_same_in_every_process(
    rings: tuple[ShardSet, list[list[np.ndarray]]], rule: str
) -> None:
    index, _ = rings
    first, second = masked(index, rule=rule), masked(index, rule=rule)
    first[SampleRef(0, 5)]  # another sample in between
    first_, other = first[SampleRef(2, 4)].content, second[SampleRef(2, 4)].content
    assert first_ is not None
    assert other is not None
    assert all(torch.equal(getattr(first_, n), getattr(other, n)) for n in ("image", "clicks_px"))
    assert first_.content_hw == ((64, 64) if rule == "squash" else (43, 64))


def test_more_masks_than_rows_are_drawn_uniformly(
    rings: tuple[ShardSet, list[list[np.ndarray]]],
) -> None:
    index, masks = rings
    dataset = masked(index, MaskSelectionConfig(masks_per_image=2, clicks=1, max_area=1.0))
    boxes = [tuple(b) for m in masks[5] for b in [(np.nonzero(m)[1].min(), np.nonzero(m)[0].max())]]
    drawn = np.zeros(6)
    for epoch in range(60):
        content = dataset[SampleRef(epoch, 5)].content
        assert content is not None
        assert len(content.masks) == 2
        for x0, _, _, y1 in to_image(content.boxes_xyxy_px.unflatten(1, (2, 2))).reshape(2, 4):
            drawn[boxes.index((round(x0), round(y1)))] += 1
    assert drawn.sum() == 120
    assert drawn.min() > 6  # 20 each


def test_batch_fills_missing_masks_and_samples_with_padding(
    rings: tuple[ShardSet, list[list[np.ndarray]]],
) -> None:
    index, _ = rings
    dataset = masked(index)
    batch = dataset.collate(
        [dataset[SampleRef(0, 0)], dataset[SampleRef(0, 5)], dataset[SampleRef(0, None)]]
    )
    assert batch.valid.tolist() == [[True, False, False, False], [True] * 4, [False] * 4]
    assert batch.masks.shape == (3, 4, 16, 16)
    assert batch.clicks_px.shape == (3, 4, 5, 2)
    assert not batch.masks[~batch.valid].any()
    assert batch.key == ("p0", "p5", "")
    assert batch.corrupt == ()
    assert batch.sample_key[0] != batch.sample_key[1]


def test_corrupt_samples_keep_their_row_with_their_kind(
    corrupt: tuple[ShardSet, dict[str, str]],
) -> None:
    index, kinds = corrupt
    dataset = masked(index)
    samples = list(index.samples())
    batch = dataset.collate([dataset[SampleRef(0, i)] for i in range(len(samples))])
    assert batch.key == tuple(sample.key for sample in samples)
    assert {d.key: d.kind for d in batch.corrupt} == kinds
    assert all(d.shard.endswith("corrupt.tar") for d in batch.corrupt)
    assert batch.valid.any(1).tolist() == [key == "good" for key in batch.key]


def test_shard_that_shrank_since_it_was_indexed_is_corrupt(
    tmp_path: Path, tar_of: TarOf, good_sample: dict[str, bytes]
) -> None:
    path = tar_of(tmp_path / "a.tar", {f"x.{e}": data for e, data in good_sample.items()})
    index = open_shards(str(path))
    path.write_bytes(path.read_bytes()[:600])
    prepared = masked(index)[SampleRef(0, 0)]
    assert prepared.content is None
    assert prepared.corrupt is not None
    assert prepared.corrupt.kind == "truncated shard"


def test_image_without_masks_is_not_corrupt(
    tmp_path: Path, tar_of: TarOf, good_sample: dict[str, bytes], json_of: Callable[..., bytes]
) -> None:
    tar_of(tmp_path / "a.tar", {"x.jpg": good_sample["jpg"], "x.json": json_of([])})
    dataset = masked(open_shards(str(tmp_path / "a.tar")))
    batch = dataset.collate([dataset[SampleRef(0, 0)]])
    assert batch.corrupt == ()
    assert not batch.valid.any()


@pytest.mark.parametrize("size", [1, 3])
def test_one_pass_over_two_ranks_is_every_image_once(
    rings: tuple[ShardSet, list[list[np.ndarray]]], size: int
) -> None:
    index, _ = rings
    keys: list[str] = []
    for rank in range(2):
        loader = inference_loader(masked(index), 6, RankShard(rank, 2, size, 2 * size), workers=0)
        for batch in loader:
            keys += [key for key in batch.key if key]
    assert sorted(keys) == [f"p{i}" for i in range(6)]


def broken_cut(*_: object) -> Tensor:
    raise ZeroDivisionError("no such thing")


@pytest.mark.parametrize("workers", [0, 1])
def test_fault_of_the_program_names_shard_and_sample(
    rings: tuple[ShardSet, list[list[np.ndarray]]], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efficientsam_pl.data.datasets.masks.frame", broken_cut)
    loader = inference_loader(masked(rings[0]), 6, RankShard(0, 1, 2, 2), workers)
    with pytest.raises(SampleFaultError, match=r"rings\.tar: sample p0: ZeroDivisionError"):
        next(iter(loader))


def test_a_micro_batch_is_read_at_once_and_equals_its_samples_one_by_one(
    rings: tuple[ShardSet, list[list[np.ndarray]]],
) -> None:
    dataset = masked(rings[0])
    refs = [SampleRef(0, number) for number in (4, 1, 5)]
    together = dataset.collate(dataset.__getitems__([*refs, SampleRef(0, None)]))
    separate = dataset.collate([dataset[ref] for ref in [*refs, SampleRef(0, None)]])
    assert together.key == separate.key == ("p4", "p1", "p5", "")
    for name in ("image", "masks", "boxes_xyxy_px", "clicks_px", "valid"):
        assert torch.equal(getattr(together, name), getattr(separate, name))


def test_batches_lie_in_memory_as_gpus_like_them(
    rings: tuple[ShardSet, list[list[np.ndarray]]],
) -> None:
    dataset = masked(rings[0])
    batch = dataset.collate(dataset.__getitems__([SampleRef(0, 0), SampleRef(0, 1)]))
    assert batch.image.is_contiguous(memory_format=torch.channels_last)


def test_masks_without_a_pixel_are_left_out_whatever_area_is_stated(
    tmp_path: Path, tar_of: TarOf, good_sample: dict[str, bytes]
) -> None:
    record = json.loads(good_sample["json"])
    record["annotations"][0] |= {
        "segmentation": {"size": list(HW), "counts": [HW[0] * HW[1]]},
        "area": 77,
    }
    files = {"x.jpg": good_sample["jpg"], "x.json": json.dumps(record).encode()}
    tar_of(tmp_path / "a.tar", files)
    content = masked(open_shards(str(tmp_path / "a.tar")))[SampleRef(0, 0)].content
    assert content is not None
    assert len(content.masks) == len(content.clicks_px) == 1


CROPPED = MaskSelectionConfig(
    masks_per_image=4, clicks=5, max_area=1.0, crop=MaskCropConfig(min_area=0.3, min_visible=0.3)
)


@pytest.mark.parametrize("rule", ["squash", "pad"])
def test_masks_boxes_and_clicks_follow_the_crop(
    rings: tuple[ShardSet, list[list[np.ndarray]]], rule: str
) -> None:
    """A slow reference crops the decoded image and masks, and knows no run lengths."""
    index, masks = rings
    dataset = masked(index, CROPPED, rule)
    sizes = set()
    for epoch in range(12):
        ref = SampleRef(epoch, 3)
        content, key = dataset[ref].content, dataset[ref].sample_key
        assert content is not None
        crop = random_crop(HW, CROPPED.crop.rectangle(), key)
        window = np.s_[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        seen = [m[window] for m in masks[3] if m[window].sum() >= 0.3 * m.sum()]
        assert len(content.masks) == len(seen)
        scale = np.array(content.content_hw[::-1]) / (crop.width, crop.height)
        for clicks, box, mask in zip(
            content.clicks_px.numpy() / scale,
            content.boxes_xyxy_px.numpy().reshape(-1, 2, 2) / scale,
            seen,
            strict=True,
        ):
            assert all(mask[y, x] for x, y in clicks.round().astype(int))
            ys, xs = np.nonzero(mask)
            np.testing.assert_allclose(box, [[xs.min(), ys.min()], [xs.max(), ys.max()]], atol=1e-3)
        sizes.add((crop.height, crop.width))
    assert len(sizes) > 6


def test_crop_of_the_image_is_that_of_the_masks(
    tmp_path: Path,
    tar_of: TarOf,
    jpeg_of: Callable[..., bytes],
    json_of: Callable[..., bytes],
) -> None:
    """The image is white where the mask is: they stay together through crop, flip and resize."""
    mask = np.zeros(HW, dtype=bool)
    mask[10:30, 20:45] = True
    files = {"x.jpg": jpeg_of(np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255)}
    tar_of(tmp_path / "a.tar", files | {"x.json": json_of([mask])})
    selection = MaskSelectionConfig(
        masks_per_image=1, clicks=1, max_area=1.0, flip=0.5, crop=MaskCropConfig(min_area=0.2)
    )
    dataset = masked(open_shards(str(tmp_path / "a.tar")), selection)
    shares = []
    for epoch in range(12):
        content = dataset[SampleRef(epoch, 0)].content
        assert content is not None
        for grid in content.masks:
            white = torch.nn.functional.avg_pool2d(content.image[:1].float(), 4)[0] > 127
            shares.append(float((white == grid).float().mean()))
    assert len(shares) > 8
    assert min(shares) > 0.93  # but for cells on the outline
