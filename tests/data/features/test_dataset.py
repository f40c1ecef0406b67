"""Training reads the written features, crop by crop."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientsam_pl.data.config import CropConfig, DataConfig
from efficientsam_pl.data.dataloaders import training_loader
from efficientsam_pl.data.datasets.crops import CropDataset
from efficientsam_pl.data.features.dataset import (
    MapLookup,
    StoredMapDataset,
    StoredViewDataset,
    Student,
    ViewLookup,
)
from efficientsam_pl.data.features.image_maps import ImageMaps
from efficientsam_pl.data.features.store import open_features
from efficientsam_pl.data.features.views import Views
from efficientsam_pl.data.packing.writer import PackedSample, PackSummary, write_shard
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import DatasetOrder, RankShard, SampleRef, TrainingBatchSampler
from efficientsam_pl.data.schema import IMAGE_SUFFIXES
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.storage.cache import ShardCache
from efficientsam_pl.structures import ImageBatch

Write = Callable[..., PackSummary]
Teacher = Callable[[Tensor], Tensor]
STUDENT = Student(side=32, grid=4, channels=5)


def stored_views(
    images: ShardSet, views: Views, folder: Path, seed: int = 7, cache: ShardCache | None = None
) -> StoredViewDataset:
    files = ViewLookup((open_features(str(folder), images),), views, seed)
    return StoredViewDataset(SampleReader([images], IMAGE_SUFFIXES, cache, files), STUDENT, files)


def batch_of(dataset: StoredViewDataset | StoredMapDataset, epoch: int) -> ImageBatch:
    refs = [SampleRef(epoch, number) for number in range(8)]
    return dataset.collate(dataset.__getitems__([*refs, SampleRef(epoch, None)]))


def test_features_are_the_online_teachers_rounded(
    written: Write, images: ShardSet, views: Views, teacher: Teacher, tmp_path: Path
) -> None:
    written()
    dataset = stored_views(images, views, tmp_path / "store")
    for epoch in range(4):
        batch = batch_of(dataset, epoch)
        assert batch.features is not None
        assert batch.features.shape == (9, 16, 5)
        assert batch.features.dtype == torch.float16
        assert batch.valid.tolist() == [number not in (5, 8) for number in range(9)]
        valid = batch.valid
        assert torch.equal(batch.features[valid], teacher(batch.image[valid]).half())
        assert not batch.features[~valid].any()
        assert [(d.key, d.kind) for d in batch.corrupt] == [("p5", "bad photo")]


def test_crops_of_an_epoch_are_its_views(
    written: Write, images: ShardSet, views: Views, tmp_path: Path
) -> None:
    written()
    assert views.crop is not None
    dataset = stored_views(images, views, tmp_path / "store")
    online = CropDataset(SampleReader([images], IMAGE_SUFFIXES), views.crop, views.side, views.seed)
    used: Counter[tuple[str, int]] = Counter()
    for epoch in range(7):
        batch = batch_of(dataset, epoch)
        for number in (0, 4, 7):
            key = f"p{number}"
            [view] = [
                v
                for v in range(views.count)
                if torch.equal(batch.image[number], crop_of(online, SampleRef(v, number)))
            ]
            used[key, view] += 1
    assert len(used) == 9
    assert set(used.values()) == {2, 3}


def crop_of(online: CropDataset, ref: SampleRef) -> Tensor:
    image = online[ref].image
    assert image is not None
    return image


def test_masks_differ_by_epoch_as_online(
    written: Write, images: ShardSet, views: Views, tmp_path: Path
) -> None:
    written()
    dataset = stored_views(images, views, tmp_path / "store")
    online = CropDataset(SampleReader([images], IMAGE_SUFFIXES), CropConfig(), 32, 7)
    for epoch in (0, 5):
        expected = [online[SampleRef(epoch, number)].sample_key for number in range(8)]
        assert batch_of(dataset, epoch).sample_key.tolist() == [*expected, 0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on fewer cores
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_workers(
    workers: int, written: Write, images: ShardSet, views: Views, tmp_path: Path
) -> None:
    written()
    dataset = stored_views(images, views, tmp_path / "store")
    sample_order = DatasetOrder(images.sizes(), 0, 2)

    def first(workers: int) -> list[ImageBatch]:
        batches = TrainingBatchSampler(sample_order, RankShard(0, 1, 3, 3))
        loader = iter(training_loader(dataset, batches, DataConfig(workers=workers)))
        return [next(loader) for _ in range(6)]

    for here, there in zip(first(0), first(workers), strict=True):
        assert here.key == there.key
        assert here.corrupt == there.corrupt
        for name in ("image", "features", "sample_key", "valid"):
            assert torch.equal(getattr(here, name), getattr(there, name))


def test_store_is_read_through_the_cache(
    written: Write, images: ShardSet, views: Views, tmp_path: Path
) -> None:
    written()
    direct = batch_of(stored_views(images, views, tmp_path / "store"), 1)
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    through = batch_of(stored_views(images, views, tmp_path / "store", cache=cache), 1)
    assert direct.features is not None
    assert through.features is not None
    assert torch.equal(direct.features, through.features)


def test_sample_without_features_keeps_its_row(
    written: Write, images: ShardSet, views: Views, tmp_path: Path
) -> None:
    written(make_input=WithoutP1(views))
    batch = batch_of(stored_views(images, views, tmp_path / "store"), 0)
    assert not batch.valid[1]
    [missing] = [d for d in batch.corrupt if d.key == "p1"]
    assert missing.kind == "missing features"
    assert missing.shard.endswith("photos/set-0.tar")


class WithoutP1:
    """Shows no view of one image."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def __call__(self, data: bytes | memoryview, sample: str) -> object:
        shown = self._views.teacher_input(data, sample)
        if sample == "p1":
            shown.squares.clear()
        return shown


def test_corrupt_and_lost_bytes_of_features_are_reported(
    written: Write, images: ShardSet, views: Views, tmp_path: Path
) -> None:
    written()
    dataset = stored_views(images, views, tmp_path / "store")
    path = tmp_path / "store/set-0.tar"
    content = bytearray(path.read_bytes())
    for view in range(3):
        at = content.index(f"p2.view{view}".encode()) + 512
        content[at : at + 8] = b"\xff" * 8
    path.write_bytes(content)
    cut = tmp_path / "store/set-2.tar"
    cut.write_bytes(cut.read_bytes()[:700])
    batch = batch_of(dataset, 0)
    faults = {d.key: (d.kind, Path(d.shard).parent.name) for d in batch.corrupt}
    assert faults["p2"] == ("bad features", "photos")
    assert faults["p6"] == faults["p7"] == ("truncated shard", "store")
    assert batch.valid.tolist() == [number in (0, 1, 3, 4) for number in range(9)]


def test_features_of_another_size_are_corrupt(
    written: Write, images: ShardSet, views: Views, tmp_path: Path
) -> None:
    written()
    files = ViewLookup((open_features(f"{tmp_path}/store", images),), views, 7)
    reader = SampleReader([images], IMAGE_SUFFIXES, sidecar_lookup=files)
    batch = batch_of(StoredViewDataset(reader, Student(32, 5, 5), files), 0)
    assert not batch.valid.any()
    assert {d.kind for d in batch.corrupt if d.key != "p5"} == {"bad features"}
    assert "[16, 5] where [25, 5]" in batch.corrupt[0].detail


MAPS = ImageMaps(side=64, grid=8, exact=False)


def embed_positions(squares: Tensor, content_hw: Tensor) -> Iterator[Tensor]:
    """Two channels that grow by one a pixel along y and x, on cells of eight pixels."""
    at = torch.arange(8.0) * 8 + 4
    both = torch.stack([at[:, None].expand(8, 8), at.expand(8, 8)])
    for height, width in content_hw.tolist():
        yield MAPS.kept(both, (height, width))[None]


def stored_maps(images: ShardSet, folder: Path, crop: CropConfig | None) -> StoredMapDataset:
    files = MapLookup((open_features(str(folder), images),))
    reader = SampleReader([images], IMAGE_SUFFIXES, sidecar_lookup=files)
    return StoredMapDataset(reader, Student(32, 4, 2), crop, MAPS, seed=7)


def test_crops_of_whole_images_are_online_ones_with_the_features_under_them(
    written: Write, images: ShardSet, tmp_path: Path
) -> None:
    written(make_input=MAPS.teacher_input, embed=embed_positions, squares_per_image=1)
    crop = CropConfig(min_area=0.3, flip=0.0)
    dataset = stored_maps(images, tmp_path / "store", crop)
    online = CropDataset(SampleReader([images], IMAGE_SUFFIXES), crop, 32, 7)
    for epoch in range(3):
        batch = batch_of(dataset, epoch)
        assert batch.features is not None
        assert batch.features.dtype == torch.float16
        for number in (0, 1, 2, 3, 4, 6, 7):
            assert torch.equal(batch.image[number], crop_of(online, SampleRef(epoch, number)))
            y, x = batch.features[number].float().unflatten(0, (4, 4)).unbind(-1)
            assert (y.diff(dim=0) >= 0).all()
            assert (x.diff(dim=1) >= 0).all()
            torch.testing.assert_close(y, y[:, :1].expand(4, 4))
    assert not torch.equal(batch_of(dataset, 0).image, batch_of(dataset, 1).image)


def test_held_out_images_have_the_features_of_their_centre(
    written: Write, images: ShardSet, tmp_path: Path
) -> None:
    """p2 is 64 x 64: its cells of 16 pixels have their centres' places, but for the edge's."""
    written(make_input=MAPS.teacher_input, embed=embed_positions, squares_per_image=1)
    batch = batch_of(stored_maps(images, tmp_path / "store", None), 0)
    assert batch.features is not None
    y, x = batch.features[2].float().unflatten(0, (4, 4)).unbind(-1)
    # within four pixels of the edge the map stays at 4: (4 * 4 + 12 * 10) / 16
    places = torch.tensor([8.5, 24.0, 40.0, 55.5])
    torch.testing.assert_close(x, places.expand(4, 4), atol=0.02, rtol=0)
    torch.testing.assert_close(y, places[:, None].expand(4, 4), atol=0.02, rtol=0)


def test_mixture_reads_each_set_from_its_own_store(
    written: Write,
    images: ShardSet,
    views: Views,
    tmp_path: Path,
    jpeg_of: Callable[[np.ndarray], bytes],
    noise: Callable[..., np.ndarray],
) -> None:
    written()
    first = open_features(f"{tmp_path}/store", images)
    shard, _ = write_shard(
        f"{tmp_path}/other/x.tar", [PackedSample("q", {"jpg": jpeg_of(noise(9))})]
    )
    assert shard is not None
    files = ViewLookup((first, first), views, 7)
    reader = SampleReader([images, ShardSet((shard,))], IMAGE_SUFFIXES, sidecar_lookup=files)
    batch = StoredViewDataset(reader, STUDENT, files).collate(
        StoredViewDataset(reader, STUDENT, files).__getitems__(
            [SampleRef(0, 0, 0), SampleRef(0, 0, 1)]
        )
    )
    assert batch.valid.tolist() == [True, False]
    assert [d.kind for d in batch.corrupt] == ["missing features"]
