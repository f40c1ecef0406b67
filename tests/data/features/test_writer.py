"""Feature shards: which files, what their index says, resumed and divided to the same bytes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientsam_pl.data.features.codec import Rounding
from efficientsam_pl.data.features.store import (
    is_claimed,
    open_features,
    written_features,
)
from efficientsam_pl.data.features.views import Views
from efficientsam_pl.data.manifest import Shard
from efficientsam_pl.data.packing.runner import ArrayShare
from efficientsam_pl.data.packing.writer import PackSummary, Skipped
from efficientsam_pl.data.shards import ShardSet, open_shards
from efficientsam_pl.errors import UserError

Write = Callable[..., PackSummary]


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def indexes(folder: Path) -> dict[str, dict[str, object]]:
    """Read the indexes by name, without the times at which their shards were written."""
    loaded = {p.name: json.loads(p.read_text()) for p in folder.glob("*.tar.index.json")}
    return {name: {k: v for k, v in index.items() if k != "time"} for name, index in loaded.items()}


def test_every_image_has_a_file_for_each_view(
    written: Write, images: ShardSet, tmp_path: Path
) -> None:
    summary = written()
    shards = open_shards(f"{tmp_path}/store/*.tar")
    assert [Path(s.path).name for s in shards.shards] == ["set-0.tar", "set-1.tar", "set-2.tar"]
    samples = list(shards.samples())
    assert [s.key for s in samples] == ["p0", "p1", "p2", "p3", "p4", "p6", "p7"]
    assert all(set(s.files) == {f"view{v}.safetensors" for v in range(3)} for s in samples)
    assert summary.samples == 7
    [skipped] = summary.skipped
    assert (skipped.what, skipped.why.split(":")[0]) == ("p5", "bad photo")


def test_index_notes_the_images_and_the_rounding(
    written: Write, images: ShardSet, tmp_path: Path
) -> None:
    summary = written()
    for shard in images.shards:
        noted = indexes(tmp_path / "store")[f"{Path(shard.path).name}.index.json"]["packed"]
        assert isinstance(noted, dict)
        assert noted["noted"]["photos_sha256"] == shard.sha256
        assert noted["noted"]["channels"] == 5
    rounding = Rounding()
    for facts in summary.notes:
        rounding.add(facts["rounding"])
    # channels of 0..765 rounded to 11 bits: half a unit in the last place at most
    assert 0 < rounding.largest_error <= 0.25
    assert 2**-14 < rounding.relative() < 2**-11


@pytest.mark.parametrize("numbers", ["float16", "int8"])
@pytest.mark.parametrize("missing", [(0,), (1, 2)])
def test_resumed_job_writes_the_same_bytes(
    numbers: str, missing: tuple[int, ...], written: Write, tmp_path: Path
) -> None:
    first = written(numbers=numbers)
    whole, index_files = tars(tmp_path / "store"), indexes(tmp_path / "store")
    for number in missing:
        (tmp_path / f"store/set-{number}.tar").unlink()
    again = written(numbers=numbers)
    assert tars(tmp_path / "store") == whole
    assert indexes(tmp_path / "store") == index_files
    assert again.done_before == 3 - len(missing)
    assert sorted(map(str, again.notes)) == sorted(map(str, first.notes))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_shares_of_an_array_are_the_whole(count: int, written: Write, tmp_path: Path) -> None:
    written("one")
    for index in range(count):
        written("many", ArrayShare(index, count))
    assert tars(tmp_path / "many") == tars(tmp_path / "one")
    assert indexes(tmp_path / "many") == indexes(tmp_path / "one")


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_batches_of_any_size_give_the_same_files(
    batch: int, written: Write, tmp_path: Path
) -> None:
    written("five")
    written("other", batch=batch)
    assert tars(tmp_path / "other") == tars(tmp_path / "five")


def test_teacher_is_given_no_more_squares_than_a_batch(written: Write) -> None:
    seen = []

    def embed(squares: Tensor, content_hw: Tensor) -> Iterator[Tensor]:
        seen.append(len(squares))
        assert content_hw.tolist() == [[32, 32]] * len(squares)
        yield torch.zeros(len(squares), 4, 2)

    written("two", embed=embed, batch=2)
    assert max(seen) == 2
    seen.clear()
    written("seven", embed=embed, batch=7)  # two images of three views
    assert seen == [6, 3, 6, 6]
    assert sum(seen) == 21


def worst(value: float, number: int) -> Callable[[Tensor, Tensor], Iterator[Tensor]]:
    """A teacher whose so manieth square of the first batch has a feature of this value."""
    calls = iter([True])

    def embed(squares: Tensor, content_hw: Tensor) -> Iterator[Tensor]:
        features = torch.ones(len(squares), 4, 2)
        if next(calls, False):
            features[number, 1, 1] = value
        yield features

    return embed


@pytest.mark.parametrize("numbers", ["float16", "int8"])
def test_features_that_float16_cannot_hold_are_skipped_and_reported(
    numbers: str, written: Write, tmp_path: Path
) -> None:
    summary = written(embed=worst(1e5, 4), batch=6, numbers=numbers)  # p1's second view
    assert summary.skipped[0] == Skipped("p1", "a feature is larger than float16 can hold")
    assert len(summary.skipped) == 2
    keys = [sample.key for sample in open_shards(f"{tmp_path}/store/*.tar").samples()]
    assert keys == ["p0", "p2", "p3", "p4", "p6", "p7"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_teacher_that_gives_no_numbers_stops_the_job(
    value: float, written: Write, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"photos/set-0\.tar p1 hold nan or inf"):
        written(embed=worst(value, 4), batch=6)
    assert tars(tmp_path / "store") == {}


def test_store_of_other_images_is_refused(written: Write, images: ShardSet, tmp_path: Path) -> None:
    written()
    other = [Shard(s.path, s.index, s.bytes, s.samples, "0" * 64) for s in images.shards]
    with pytest.raises(UserError, match=r"store/set-0\.tar holds features of other images"):
        open_features(f"{tmp_path}/store", ShardSet(tuple(other)))


def test_store_that_lacks_shards_is_refused_with_their_number(
    written: Write, images: ShardSet, tmp_path: Path
) -> None:
    written(share=ArrayShare(1, 3))
    assert len(written_features(f"{tmp_path}/store", images)) == 1
    message = r"lacks the features of 2 of 3 shards, first .*photos/set-0\.tar"
    with pytest.raises(UserError, match=message):
        open_features(f"{tmp_path}/store", images)
    with pytest.raises(UserError, match="lacks the features of 3 of 3 shards"):
        open_features(f"{tmp_path}/nothing", images)


def test_shard_whose_job_was_killed_before_its_index_is_lacking(
    written: Write, images: ShardSet, tmp_path: Path
) -> None:
    written()
    for path in [*(tmp_path / "store").glob("*2.tar.index.json"), tmp_path / "store/manifest.json"]:
        path.unlink()
    with pytest.raises(UserError, match="lacks the features of 1 of 3"):
        open_features(f"{tmp_path}/store", images)
    open_shards(f"{tmp_path}/store/*.tar")  # indexes it, without knowing of what it is made
    with pytest.raises(UserError, match="lacks the features of 1 of 3"):
        open_features(f"{tmp_path}/store", images)


def test_store_that_has_lost_bytes_is_refused(
    written: Write, images: ShardSet, tmp_path: Path
) -> None:
    written()
    path = tmp_path / "store/set-1.tar"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"set-1\.tar has \d+ of \d+ bytes; delete it"):
        open_features(f"{tmp_path}/store", images)


def test_images_of_a_lost_shard_need_no_features(
    written: Write, images: ShardSet, tmp_path: Path
) -> None:
    Path(images.shards[2].path).unlink()
    summary = written()
    assert summary.samples == 5
    now = open_shards(f"{tmp_path}/photos/*.tar")
    assert [d.kind for d in now.corrupt] == ["missing shard"]
    opened = open_features(f"{tmp_path}/store", now)
    assert len(opened.shards) == 2
    [key] = [s.key for s in now.samples() if s.key == "p6"]
    assert opened.find(now.sample(6), "view0.safetensors") is None
    assert key == "p6"


def test_claimed_folder_must_be_of_the_same_kind(written: Write, tmp_path: Path) -> None:
    assert not is_claimed(f"{tmp_path}/store", {"version": 1})
    written()
    assert is_claimed(f"{tmp_path}/store", {"version": 1})
    with pytest.raises(UserError, match="version was 1, now 2"):
        is_claimed(f"{tmp_path}/store", {"version": 2})


def test_two_shards_of_one_name_are_refused(images: ShardSet, written: Write) -> None:
    first = images.shards[0]
    twin = Shard("/elsewhere/set-0.tar", first.index, first.bytes, 3, first.sha256)
    with pytest.raises(UserError, match=r"a shard's name, which .*set-0\.tar and /elsewhere"):
        written_features("store", ShardSet((first, twin)))


def test_views_are_found_by_key_and_suffix(
    written: Write, images: ShardSet, views: Views, tmp_path: Path
) -> None:
    written()
    opened = open_features(f"{tmp_path}/store", images)
    assert opened.channels == 5
    sample = opened.find(images.sample(4), "view2.safetensors")
    assert sample is not None
    assert (sample.key, Path(sample.shard).name) == ("p4", "set-1.tar")
    assert list(sample.files) == ["view2.safetensors"]
    assert opened.find(images.sample(4), "view3.safetensors") is None
    assert opened.find(images.sample(5), "view2.safetensors") is None


def test_store_of_a_replaced_shard_of_the_same_size_is_refused(
    written: Write,
    images: ShardSet,
    tmp_path: Path,
    tar_of: Callable[..., Path],
    jpeg_of: Callable[..., bytes],
    noise: Callable[..., np.ndarray],
) -> None:
    written()
    old = Path(images.shards[2].path)
    size = old.stat().st_size
    new = {"p6.jpg": jpeg_of(noise(70, 70, 65)), "p7.jpg": jpeg_of(noise(71, 48, 49))}
    tar_of(old, new)
    assert old.stat().st_size == size
    now = open_shards(f"{tmp_path}/photos/*.tar")
    with pytest.raises(UserError, match=rf"set-2\.tar holds features of other images than {old}"):
        open_features(f"{tmp_path}/store", now)
