"""A set of one's own, as it comes: good, odd, broken, changed, and packed by several at a time."""

import json
import multiprocessing
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.cli import main as cli
from efficientsam_pl.data.config import CocoConfig, DataConfig, MaskSelectionConfig
from efficientsam_pl.data.dataloaders import AnnotatedImage, annotated_images
from efficientsam_pl.data.datasets.masks import Frame, MaskDataset
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import MASK_SUFFIXES
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.errors import UserError
from efficientsam_pl.geometry import ResizeRule
from efficientsam_pl.recipes.promptable.custom_coco import packed_coco
from efficientsam_pl.rle import decode
from efficientsam_pl.structures import MaskBatch

SQUARE = [[2, 2, 20, 2, 20, 20, 2, 20]]
Annotation = dict[str, Any]


class Set:
    """A COCO-format set that a test fills. It has no categories, and ids only where COCO needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: list[dict[str, Any]] = []
        self.annotations: list[Annotation] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, *annotations: Annotation, hw: tuple[int, int] = (30, 40)) -> None:
        """An image with its annotations, which lack no more than their image_id."""
        draw = np.random.default_rng([len(self.images), *self.folder.name.encode()])
        pixels = draw.integers(0, 256, (*hw, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.folder / name)
        number = 100 + len(self.images)
        self.images.append({"id": number, "file_name": name, "height": hw[0], "width": hw[1]})
        self.annotations += [{"image_id": number, **annotation} for annotation in annotations]

    def config(self, name: str = "set.json", **more: Any) -> DataConfig:
        """Written down, and named."""
        file = self.folder / name
        file.write_text(json.dumps({"images": self.images, "annotations": self.annotations}))
        coco = CocoConfig(annotations=str(file), images=str(self.folder), **more)
        return DataConfig(coco=coco, workers=0)


def mask(polygons: Any = SQUARE, **more: Any) -> Annotation:
    return {"segmentation": polygons, **more}


def filled(folder: Path, images: int = 10) -> Set:
    coco_set = Set(folder)
    for i in range(images):
        coco_set.add(f"p{i}.jpg" if i % 2 else f"p{i}.png", mask(), mask([[5, 5, 9, 5, 9, 25]]))
    return coco_set


def keys(config: DataConfig) -> tuple[set[str], set[str]]:
    """Keys of the images on both sides."""
    assert config.heldout is not None
    train, heldout = (
        [p.key for p in annotated_images(open_shards(pattern)) if isinstance(p, AnnotatedImage)]
        for pattern in (config.train, config.heldout)
    )
    assert len(train) + len(heldout) == len({*train, *heldout})
    return set(train), set(heldout)


def files(run: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file of the shards' folder."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (run / "shards").glob("*")}


def test_a_fifth_of_the_images_is_held_out(tmp_path: Path) -> None:
    config = filled(tmp_path / "set").config()
    packed = packed_coco(config, tmp_path / "run")
    train, heldout = keys(packed)
    assert len(heldout) == 2
    assert train | heldout == {f"p{i}" for i in range(10)}
    assert packed.coco == CocoConfig()
    assert replace(packed, train="", heldout=None, coco=config.coco) == config


def test_a_config_without_a_set_stays_as_it_is(tmp_path: Path) -> None:
    config = DataConfig(train="a-*.tar", heldout="b-*.tar")
    assert packed_coco(config, tmp_path) is config
    assert not any(tmp_path.iterdir())


def test_images_and_masks_are_those_of_the_set(tmp_path: Path) -> None:
    coco_set = filled(tmp_path / "set", 4)
    packed = packed_coco(coco_set.config(), tmp_path / "run")
    assert packed.heldout is not None
    seen = 0
    for pattern in (packed.train, packed.heldout):
        for image in annotated_images(open_shards(pattern)):
            assert isinstance(image, AnnotatedImage)
            seen += 1
            square, triangle = map(decode, image.truth)
            expected = np.zeros((30, 40), bool)
            expected[2:20, 2:20] = True  # a polygon's right and lower edges lie between pixels
            assert np.array_equal(square, expected)
            assert 30 < triangle.sum() < 50  # half of 4 by 20
            if image.key in ("p1", "p3"):  # JPEGs are stored byte by byte
                original = np.array(Image.open(tmp_path / "set" / f"{image.key}.jpg"))
                assert np.abs(image.image.astype(int) - original).max() <= 4
    assert seen == 4


def test_more_images_keep_the_same_set_of_their_own_apart(tmp_path: Path) -> None:
    """The held-out choice depends on keys, not on the file's order."""
    coco_set = filled(tmp_path / "set")
    first = keys(packed_coco(coco_set.config(), tmp_path / "one"))
    coco_set.images.reverse()
    assert keys(packed_coco(coco_set.config(), tmp_path / "two")) == first


def test_what_is_packed_is_used_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = filled(tmp_path / "set").config(), tmp_path / "run"
    first = packed_coco(config, run)
    before = files(run)
    assert "Packing" in capsys.readouterr().out
    for image in (tmp_path / "set").glob("*.png"):
        image.unlink()  # they are not needed any more
    assert packed_coco(config, run) == first
    assert files(run) == before
    assert not capsys.readouterr().out


@pytest.mark.parametrize("lost", ["pack-summary.json", "train-000000.tar.index.json"])
def test_what_was_not_finished_is_packed_to_the_same_bytes(tmp_path: Path, lost: str) -> None:
    """A shard without its index may be half a shard; a folder without its summary, half a set."""
    config, run = filled(tmp_path / "set").config(), tmp_path / "run"
    packed_coco(config, run)
    before = {name: content for name, (content, _) in files(run).items() if name.endswith("tar")}
    for gone in {lost, "pack-summary.json"}:
        (run / "shards" / gone).unlink()
    if lost.startswith("train"):
        tar = run / "shards" / "train-000000.tar"
        tar.write_bytes(tar.read_bytes()[:700])
    packed_coco(config, run)
    after = {name: content for name, (content, _) in files(run).items() if name.endswith("tar")}
    assert after == before


@pytest.mark.parametrize("change", ["annotations", "images", "heldout_fraction"])
def test_another_set_in_the_same_run_is_reported(tmp_path: Path, change: str) -> None:
    coco_set, run = filled(tmp_path / "set"), tmp_path / "run"
    config = coco_set.config()
    packed_coco(config, run)
    before = files(run)
    if change == "annotations":
        coco_set.annotations.pop()
        other = coco_set.config()
    elif change == "images":
        (tmp_path / "set").rename(tmp_path / "moved")
        coco_set.folder = tmp_path / "moved"
        other = coco_set.config()
    else:
        other = coco_set.config(heldout_fraction=0.5)
    with pytest.raises(UserError, match=f"{change} was .*, now .*name another run.dir") as message:
        packed_coco(other, run)
    assert "\n" not in str(message.value)
    assert files(run) == before


def test_images_changed_after_being_packed_are_refused_with_what_to_do(tmp_path: Path) -> None:
    config, run = filled(tmp_path / "set").config(), tmp_path / "run"
    packed_coco(config, run)
    image = tmp_path / "set" / "p3.jpg"
    Image.new("RGB", (40, 30), "red").save(image)
    with pytest.raises(UserError, match=rf"such as {image} of .*; delete {run}/shards to pack"):
        packed_coco(config, run)
    shutil.rmtree(run / "shards")
    packed_coco(config, run)


@pytest.mark.parametrize("broken", [1, 10])
def test_images_that_were_broken_come_in_once_they_are_mended(
    broken: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_set, run = filled(tmp_path / "set"), tmp_path / "run"
    config = coco_set.config()
    images = sorted(coco_set.folder.glob("p*"))[:broken]
    whole = {path: path.read_bytes() for path in images}
    for path in images:
        path.write_bytes(path.name.encode())
    if broken == len(coco_set.images):
        with pytest.raises(UserError, match="nothing could be packed"):
            packed_coco(config, run)
    else:
        assert sum(map(len, keys(packed_coco(config, run)))) == 10 - broken
    for path, data in whole.items():
        path.write_bytes(data)
    assert sum(map(len, keys(packed_coco(config, run)))) == 10
    capsys.readouterr()
    packed_coco(config, run)
    assert not capsys.readouterr().out


def packed_in_a_process(config: DataConfig, run: Path, said: Any) -> None:
    try:
        said.put(packed_coco(config, run))
    except BaseException as error:
        said.put(error)
        raise


def test_several_processes_pack_once(tmp_path: Path) -> None:
    config, run = filled(tmp_path / "set", 30).config(), tmp_path / "run"
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    ranks = [
        context.Process(target=packed_in_a_process, args=(config, run, said)) for _ in range(2)
    ]
    for rank in ranks:
        rank.start()
    configs = [said.get(timeout=120) for _ in ranks]
    for rank in ranks:
        rank.join(30)
    times = {name: time for name, (_, time) in files(run).items()}
    assert configs[0] == configs[1] == packed_coco(config, run)
    assert {name: time for name, (_, time) in files(run).items()} == times
    assert len(set.union(*keys(configs[0]))) == 30


def test_a_file_of_its_own_is_held_out_and_never_learned(tmp_path: Path) -> None:
    coco_set = filled(tmp_path / "set")
    whole = list(coco_set.images)
    coco_set.images = whole[:4]
    coco_set.config("val.json")
    coco_set.images = whole[2:]  # two of them in both
    config = coco_set.config("set.json", heldout_annotations=str(tmp_path / "set" / "val.json"))
    train, heldout = keys(packed_coco(config, tmp_path / "run"))
    assert heldout == {"p0", "p1", "p2", "p3"}
    assert train == {f"p{i}" for i in range(4, 10)}


def test_held_out_images_may_lie_elsewhere(tmp_path: Path) -> None:
    coco_set, other = filled(tmp_path / "set", 3), Set(tmp_path / "val")
    other.add("p0.png", mask())  # named as an image of the set is, but another
    other.config("val.json")
    config = coco_set.config(
        heldout_annotations=str(tmp_path / "val" / "val.json"), heldout_images=str(other.folder)
    )
    packed = packed_coco(config, tmp_path / "run")
    assert packed.heldout is not None
    assert len(open_shards(packed.train)) == 3
    assert len(open_shards(packed.heldout)) == 1


def test_what_cannot_be_used_is_left_out_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_set = filled(tmp_path / "set", 6)
    coco_set.add("bare.png")
    coco_set.add("missing.png", mask())
    (coco_set.folder / "missing.png").unlink()
    coco_set.add("torn.jpg", mask())
    (coco_set.folder / "torn.jpg").write_bytes(b"\xff\xd8 no photo")
    coco_set.add("empty.png", mask([]), mask({}))
    coco_set.add("line.png", mask([[1, 1, 5, 5]]))
    coco_set.add("crowd.png", mask(iscrowd=1))
    coco_set.add("box_only.png", {"bbox": [1, 1, 5, 5]})
    coco_set.add("partly.png", mask([]), mask([[1, 1, 5, 5]], id=7), mask())
    coco_set.add("resized.png", mask())
    coco_set.images[-1] |= {"height": 60, "width": 80}
    coco_set.annotations.append({"image_id": 999, "id": 8, **mask()})
    train, heldout = keys(packed_coco(coco_set.config(), tmp_path / "run"))
    assert train | heldout == {f"p{i}" for i in range(6)} | {"partly"}
    said = capsys.readouterr().out
    for name in ("bare", "missing", "torn", "empty", "line", "crowd", "box_only", "resized"):
        assert re.search(rf"^skipped .*\b{name}\.(png|jpg): ", said, re.MULTILINE), name
    assert "missing.png: no such file" in said
    reason = "a polygon of fewer than three corners, in partly.png"
    assert f"skipped annotation 7: annotation that cannot be used: {reason}" in said
    assert "skipped annotation 8: annotation with an unknown image_id: image_id=999" in said
    assert "annotation without a mask: 4, such as annotation at place 14 (an empty segm" in said
    assert "missing photo: 1, such as image 107" in said
    summary = json.loads((tmp_path / "run" / "shards" / "pack-summary.json").read_text())
    assert summary["samples"] == 7
    assert summary["masks"] == 13


def nothing(coco_set: Set) -> None:
    pass


def no_masks(coco_set: Set) -> None:
    coco_set.add("a.png")
    coco_set.add("b.png", mask([]))


def one_image(coco_set: Set) -> None:
    coco_set.add("a.png", mask())
    coco_set.add("b.png")


def boxes_only(coco_set: Set) -> None:
    coco_set.add("a.png", {"bbox": [1, 1, 5, 5]})
    coco_set.add("b.png", {"bbox": [1, 1, 5, 5], "segmentation": []})


def only_crowds(coco_set: Set) -> None:
    for name in ("a.png", "b.png"):
        coco_set.add(name, mask(iscrowd=1))


def one_file(coco_set: Set) -> None:
    for name in ("a.png", "b.png"):
        coco_set.add(name, mask())
    (coco_set.folder / "b.png").unlink()


def no_files(coco_set: Set) -> None:
    for name in ("a.png", "b.png"):
        coco_set.add(name, mask())
        (coco_set.folder / name).unlink()


def no_usable_masks(coco_set: Set) -> None:
    for name in ("a.png", "b.png"):
        coco_set.add(name, mask([[1, 1, 2, 2]]))


def torn(coco_set: Set) -> None:
    for name in ("a.png", "b.png"):
        coco_set.add(name, mask())
        (coco_set.folder / name).write_bytes(f"no image {name}".encode())


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (nothing, "lists no image: its images are empty"),
        (no_masks, "0 images with masks; at least two are needed.*a.png: it has no mask: no annot"),
        (boxes_only, "(2 images, such as .*a.png: it has no mask: its annotations have boxes at"),
        (
            only_crowds,
            "(2 images, such as .*a.png: .* crowds, which data.coco.crowds=objects takes",
        ),
        (one_image, "1 image with masks; at least two are needed"),
        (no_files, "0 of 2 images of .*set.json are in data.coco.images="),
        (one_file, "1 image with masks; at least two are needed.*b.png: no such file"),
        (no_usable_masks, "0 images with masks; at least two are needed.*no mask that can be used"),
        (torn, "nothing could be packed (.*[ab].png: bad photo"),
    ],
)
def test_a_set_without_images_to_learn_from_is_reported_in_a_line(
    tmp_path: Path, fill: Callable[[Set], None], message: str
) -> None:
    coco_set = Set(tmp_path / "set")
    fill(coco_set)
    for _ in range(2):  # the second start says so too
        with pytest.raises(UserError) as error:
            packed_coco(coco_set.config(), tmp_path / "run")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        packed_coco(coco_set.config(), tmp_path / "another")


def test_crowds_and_empty_masks_beside_others_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_set = filled(tmp_path / "set", 2)
    empty = {"size": [30, 40], "counts": [1200]}
    coco_set.add("more.png", mask(), mask(iscrowd="1"), mask(empty), mask(empty, id=9))
    packed_coco(coco_set.config(), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "shards" / "pack-summary.json").read_text())
    assert [summary[key] for key in ("masks", "crowds", "empty_masks")] == [8, 1, 2]
    assert "3 images, 8 masks (1 of crowds, 2 empty), 0 skipped" in capsys.readouterr().out


def test_crowds_are_trained_on_where_the_config_takes_them_as_objects(tmp_path: Path) -> None:
    coco_set = Set(tmp_path / "set")
    only_crowds(coco_set)
    packed = packed_coco(coco_set.config(crowds="objects"), tmp_path / "run")
    masks = [
        len(image.truth)
        for pattern in (packed.train, str(packed.heldout))
        for image in annotated_images(open_shards(pattern))
        if isinstance(image, AnnotatedImage)
    ]
    assert masks == [1, 1]
    with pytest.raises(UserError, match="crowds was 'objects', now"):
        packed_coco(coco_set.config(), tmp_path / "run")


def test_a_side_that_lost_its_images_is_reported(tmp_path: Path) -> None:
    coco_set = filled(tmp_path / "set", 3)
    _, heldout = keys(packed_coco(coco_set.config(), tmp_path / "run"))
    next(coco_set.folder.glob(f"{heldout.pop()}.*")).write_bytes(b"no photo")
    with pytest.raises(UserError, match="none of the heldout images could be used"):
        packed_coco(coco_set.config(), tmp_path / "another")


COPIES: dict[str, Callable[[Path, Path], object]] = {
    "bytes": lambda image, copy: copy.write_bytes(image.read_bytes()),
    "symbolic link": lambda image, copy: copy.symlink_to(image),
    "hard link": lambda image, copy: copy.hardlink_to(image),
}


@pytest.mark.parametrize("road", COPIES)
def test_copies_of_an_image_stay_on_one_side(
    tmp_path: Path, road: str, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_set = filled(tmp_path / "set")
    for i in range(10):
        image = next((tmp_path / "set").glob(f"p{i}.*"))
        coco_set.add(f"q{i}{image.suffix}", mask())
        (tmp_path / "set" / f"q{i}{image.suffix}").unlink()
        COPIES[road](image, tmp_path / "set" / f"q{i}{image.suffix}")
    train, heldout = keys(packed_coco(coco_set.config(), tmp_path / "run"))
    assert len(heldout) == 4
    for side in (train, heldout):
        assert {key[1:] for key in side if key[0] == "p"} == {
            key[1:] for key in side if key[0] == "q"
        }
    assert (
        "10 images are copies of others: they stay on one side of the split"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("road", COPIES)
def test_copies_of_held_out_images_are_not_trained_on(
    tmp_path: Path, road: str, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_set, other = filled(tmp_path / "set", 4), filled(tmp_path / "val", 3)
    (tmp_path / "val" / "p1.jpg").unlink()
    COPIES[road](tmp_path / "set" / "p3.jpg", tmp_path / "val" / "p1.jpg")
    other.config("val.json")
    config = coco_set.config(
        heldout_annotations=str(tmp_path / "val" / "val.json"), heldout_images=str(other.folder)
    )
    packed = packed_coco(config, tmp_path / "run")
    assert packed.heldout is not None
    train = {image.key for image in annotated_images(open_shards(packed.train))}
    assert train == {"p0", "p1", "p2"}
    copy = tmp_path / "val" / "p1.jpg"
    assert f"skipped {tmp_path}/set/p3.jpg: held out as {copy}" in capsys.readouterr().out


def test_a_set_of_copies_of_one_image_is_refused(tmp_path: Path) -> None:
    coco_set = filled(tmp_path / "set", 1)
    coco_set.add("copy.png", mask())
    COPIES["bytes"](tmp_path / "set" / "p0.png", tmp_path / "set" / "copy.png")
    with pytest.raises(UserError, match="its 2 images with masks are copies of one"):
        packed_coco(coco_set.config(), tmp_path / "run")


@pytest.mark.parametrize("missing", ["annotations", "images", "heldout_annotations"])
def test_what_is_named_must_be_there(tmp_path: Path, missing: str) -> None:
    coco_set = filled(tmp_path / "set", 3)
    nowhere: dict[str, Any] = {missing: str(tmp_path / "nowhere")}
    coco = replace(coco_set.config().coco, **nowhere)
    with pytest.raises(UserError, match=r"no such file or folder: .*nowhere"):
        packed_coco(DataConfig(coco=coco), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_coco_file_is_reported(tmp_path: Path) -> None:
    coco_set = filled(tmp_path / "set", 3)
    config = coco_set.config()
    (tmp_path / "set" / "set.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="is no COCO annotation file"):
        packed_coco(config, tmp_path / "run")


def batch_of(config: DataConfig, rule: ResizeRule) -> MaskBatch:
    """All training images at 64 pixels with two masks each."""
    shards = open_shards(config.train)
    dataset = MaskDataset(
        SampleReader([shards], MASK_SUFFIXES),
        MaskSelectionConfig(masks_per_image=2, max_area=1.0, clicks=3),
        Frame(64, rule),
        seed=0,
    )
    return dataset.collate(dataset.__getitems__([SampleRef(0, i) for i in range(len(shards))]))


@pytest.mark.parametrize("rule", ["squash", "pad"])
@pytest.mark.parametrize("hw", [(1, 1), (1, 3000), (3000, 1), (2, 1)])
def test_images_of_any_shape_are_learned_from(
    tmp_path: Path, hw: tuple[int, int], rule: ResizeRule
) -> None:
    """Images of one pixel and of one row: the mask survives, and what points at it is inside."""
    coco_set, (height, width) = Set(tmp_path / "set"), hw
    whole = {"size": [height, width], "counts": [0, height * width]}
    for name in ("a.png", "b.jpg", "c.png"):
        coco_set.add(name, mask(whole), hw=hw)
    batch = batch_of(packed_coco(coco_set.config(heldout_fraction=0.4), tmp_path / "run"), rule)
    assert len(batch) == 2
    assert batch.corrupt == ()
    assert batch.valid.tolist() == [[True, False], [True, False]]
    for b in range(2):
        rows, columns = batch.content_hw[b].tolist()
        assert 1 <= rows <= 64
        assert 1 <= columns <= 64
        assert max(rows, columns) == 64
        assert bool(batch.masks[b, 0].any())
        assert bool((batch.clicks_px[b, 0] >= 0).all())
        assert bool((batch.clicks_px[b, 0] < 64).all())
        x0, y0, x1, y1 = batch.boxes_xyxy_px[b, 0].tolist()
        assert 0 <= x0 <= x1 < 64
        assert 0 <= y0 <= y1 < 64


def test_mini_coco_is_packed_whole(tmp_path: Path, shared: Path) -> None:
    """Counted in its file: images, and masks that are no crowds."""
    folder = shared / "data/coco/COCO-MINI"
    file = folder / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    coco = CocoConfig(annotations=str(file), images=str(folder / "val2017"))
    packed = packed_coco(DataConfig(coco=coco, workers=0), tmp_path / "run")
    assert packed.heldout is not None
    real = [a for a in content["annotations"] if not a["iscrowd"]]
    images = {a["image_id"] for a in real}
    truth = {
        image.key: len(image.truth)
        for pattern in (packed.train, packed.heldout)
        for image in annotated_images(open_shards(pattern))
        if isinstance(image, AnnotatedImage)
    }
    names = {i["id"]: Path(i["file_name"]).stem for i in content["images"]}
    assert truth == {names[p]: sum(a["image_id"] == p for a in real) for p in images}
    assert len(open_shards(packed.heldout)) == round(0.2 * len(images))


MODEL = """
encoder: {width: 24, depth: 1, heads: 3, image_size: 64, position_grid: 4, neck_channels: 32}
prompts: {negative_clicks: true, mask_prompts: true, max_points: 8, min_points: 6}
decoder: {mlp_width: 32, iou_head_width: 32}
"""
ROUNDS = {
    "drawn": [],
    "each": ["prompts.max_clicks=3"],
    "interactive": ["prompts.corrections=2", "prompts.first_click=centre"],
}


@pytest.mark.parametrize(
    ("rounds", "max_area"), [*((rounds, 1.0) for rounds in ROUNDS), ("interactive", 0.001)]
)
def test_a_run_on_it_ends_well(
    tmp_path: Path, rounds: str, max_area: float, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two steps from scratch, also where no batch has a mask to learn from."""
    coco = filled(tmp_path / "set").config().coco
    (tmp_path / "model.yaml").write_text(MODEL)
    code = cli.main(
        [
            *("finetune", "-c", "finetune/custom_coco", "-c", "debug/cpu"),
            *(f"run.dir={tmp_path}/run", f"model.name={tmp_path}/model.yaml"),
            "model.freeze.image_encoder=false",
            *(f"data.coco.annotations={coco.annotations}", f"data.coco.images={coco.images}"),
            *(
                "trainer.max_steps=2",
                "trainer.validate_every_steps=2",
                "trainer.visualized_images=1",
            ),
            *("masks.masks_per_image=3", "masks.decoded_at_once=2", f"masks.max_area={max_area}"),
            *(f"prompts.rounds={rounds}", "loss.sampled_points=64", *ROUNDS[rounds]),
        ]
    )
    assert code == 0, capfd.readouterr().err
    consumed = [
        json.loads(line) for line in (tmp_path / "run/consumed.jsonl").read_text().splitlines()
    ]
    losses = [line["loss"] for line in consumed]
    assert len(losses) == 2
    assert all((loss == 0) if max_area < 1 else (0 < loss < 50) for loss in losses)


def test_a_run_without_such_files_ends_with_a_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    coco = filled(tmp_path / "set").config().coco
    options = [f"run.dir={tmp_path}/run", f"data.coco.annotations={coco.annotations}"]
    for images, message in ((tmp_path / "none", "no such file or folder"), (None, "go together")):
        given = [] if images is None else [f"data.coco.images={images}"]
        assert cli.main(["finetune", "-c", "finetune/custom_coco", *options, *given]) == 2
        said = capfd.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1
