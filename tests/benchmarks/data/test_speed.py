"""That the data benchmark compares like with like."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.data import speed as data
from benchmarks.data.inputs import MASKS, write_many_shards, write_sa1b
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import MASK_SUFFIXES, from_json
from efficientsam_pl.data.shards import open_shards


def test_many_shards_are_whole(tmp_path: Path) -> None:
    shards = open_shards(write_many_shards(tmp_path / "many", shards=3, samples=5))
    assert shards.sizes() == [5, 5, 5]
    assert shards.corrupt == ()
    stream = data.masked(f"{tmp_path}/many/*.tar")
    content = stream[SampleRef(0, 14)].content
    assert content is not None
    assert len(content.masks) == 1


@pytest.fixture
def one_image(shared: Path, tmp_path: Path) -> str:
    path = tmp_path / "sa_000000.tar"
    write_sa1b(path, [shared / "data/sa1b_images/sa_10039.jpg"], copies=2)
    return str(path)


def test_both_ways_make_the_same_of_a_image(
    one_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [(jpeg, record)] = data.encoded(one_image, 1)
    assert len(from_json(record).annotations) == MASKS
    monkeypatch.setattr(data, "_HELD", 32)
    monkeypatch.setattr(torch, "randperm", torch.arange)  # the first 32 masks, in order
    square, masks, clicks, boxes = data.common_way(jpeg, record)
    ours = data.masked(one_image)
    monkeypatch.setattr("efficientsam_pl.data.datasets.masks.select_masks", first_masks)
    content = ours[SampleRef(0, 0)].content
    assert content is not None
    assert float((content.image.float() - square[0]).abs().max()) <= 1
    assert clicks.shape == (32, 2)
    torch.testing.assert_close(
        content.boxes_xyxy_px, boxes * torch.tensor([1024 / 2000, 1024 / 1500] * 2)
    )
    for own, theirs in zip(content.masks, masks[:, 0], strict=True):
        # bilinear without antialiasing looks at four pixels a cell: small masks differ at the edge
        overlap = (own & theirs).sum() / (own | theirs).sum()
        assert float(overlap) > 0.7


def first_masks(record: object, config: object, key: int) -> list[object]:
    return [annotation.rle for annotation in record.annotations[:32]]  # type: ignore[attr-defined]


def test_copies_have_keys_of_their_own(one_image: str) -> None:
    shards = open_shards(one_image)
    read = SampleReader([shards], MASK_SUFFIXES).read([SampleRef(0, 0), SampleRef(0, 1)])
    one, other = (sample for sample in read if sample is not None)
    assert one.sample.key != other.sample.key
    np.testing.assert_array_equal(np.asarray(one.files["jpg"]), np.asarray(other.files["jpg"]))
