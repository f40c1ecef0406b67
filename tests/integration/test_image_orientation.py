"""EXIF orientation from end to end: masks lie on the objects that a viewer shows."""

import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam_pl.commands.evaluate.command import evaluate
from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.data.build import build_reader, open_splits
from efficientsam_pl.data.config import DataConfig, MaskSelectionConfig
from efficientsam_pl.data.datasets.masks import Frame, MaskDataset
from efficientsam_pl.data.images.decode import decode_image, read_header
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import MASK_SUFFIXES, from_json
from efficientsam_pl.evaluation.baselines import OneMask
from efficientsam_pl.evaluation.interfaces import ImagePrompts
from efficientsam_pl.rle import decode, encode

if TYPE_CHECKING:
    from tests.integration.conftest import InProcess, TinyModel

Tagged = Callable[..., bytes]
SIZES = {"wide": (48, 64), "tall": (64, 48), "square": (64, 64)}


def scene(hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A red object on grey, nowhere near its mirrored places, and its mask."""
    mask = np.zeros(hw, dtype=bool)
    mask[8:16, 8:32] = True
    image = np.full((*hw, 3), 128, dtype=np.uint8)
    image[mask] = [230, 10, 10]
    return image, mask


def red(pixels: np.ndarray) -> np.ndarray:
    return (pixels[..., 0] > 180) & (pixels[..., 1] < 70)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@dataclass(frozen=True)
class CocoSet:
    """A COCO-format set whose images carry every orientation, annotated upright."""

    folder: Path
    count: int

    @property
    def annotations(self) -> Path:
        return self.folder / "set.json"

    @property
    def images(self) -> Path:
        return self.folder / "images"


def polygon(mask: np.ndarray) -> list[list[float]]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return [[float(x) for x in (left, top, right, top, right, bottom, left, bottom)]]


def write_set(folder: Path, content: dict[str, tuple[bytes, np.ndarray]], states: bool) -> CocoSet:
    """Write images with their masks; `states`: the annotation file states their sizes."""
    (folder / "images").mkdir(parents=True)
    listed: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for number, (name, (data, mask)) in enumerate(content.items(), start=1):
        (folder / "images" / name).write_bytes(data)
        size = {"height": mask.shape[0], "width": mask.shape[1]} if states else {}
        listed["images"].append({"id": number, "file_name": name, **size})
        box = polygon(mask)[0]
        listed["annotations"].append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "segmentation": polygon(mask),
                "bbox": [box[0], box[1], box[2] - box[0], box[5] - box[1]],
                "area": int(mask.sum()),
                "iscrowd": 0,
            }
        )
    listed["categories"] = [{"id": 1, "name": "object"}]
    (folder / "set.json").write_text(json.dumps(listed))
    return CocoSet(folder, len(content))


@pytest.fixture
def every_orientation(tmp_path: Path, tagged: Tagged) -> CocoSet:
    content = {}
    for name, hw in SIZES.items():
        image, mask = scene(hw)
        for orientation in range(1, 9):
            content[f"{name}_{orientation}.jpg"] = (tagged(image, orientation), mask)
        content[f"{name}_png.png"] = (tagged(image, 6, "PNG"), mask)
    return write_set(tmp_path / "set", content, states=True)


def members(pattern: str, folder: Path) -> dict[str, bytes]:
    files = {}
    for path in folder.glob(pattern):
        with tarfile.open(path) as tar:
            files |= {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}
    return files


def packed_ious(folder: Path) -> dict[str, float]:
    files = members("*.tar", folder)
    ious = {}
    for name, data in files.items():
        key, _, suffix = name.rpartition(".")
        if suffix == "jpg":
            [annotation] = from_json(files[f"{key}.json"]).annotations
            assert read_header(data).orientation == 1
            ious[key] = iou(red(decode_image(data)), decode(annotation.rle))
    return ious


def test_packed_masks_lie_on_the_objects_of_every_orientation(
    every_orientation: CocoSet, tmp_path: Path, here: "InProcess"
) -> None:
    for out, more in ((tmp_path / "kept", []), (tmp_path / "small", ["--long-side", 60])):
        printed = here.done(
            *("pack", "coco", "--annotations", every_orientation.annotations, "--workers", 0),
            *("--images", every_orientation.images, "--out", out, *more),
        )
        assert "24 images carry an EXIF rotation: 24 turned upright" in printed
        ious = packed_ious(out)
        assert len(ious) == every_orientation.count
        assert min(ious.values()) == pytest.approx(1.0, abs=0.0 if not more else 0.15)
        summary = json.loads((out / "pack-summary.json").read_text())
        assert summary["exif_turns"] == {"turned": 24}
    upright = (every_orientation.images / "wide_1.jpg").read_bytes()
    assert members("*.tar", tmp_path / "kept")["wide_1.jpg"] == upright


def test_without_stated_sizes_the_upright_frame_is_annotated(
    tmp_path: Path, tagged: Tagged, here: "InProcess"
) -> None:
    image, mask = scene(SIZES["wide"])
    content = {f"{o}.jpg": (tagged(image, o), mask) for o in range(1, 9)}
    coco = write_set(tmp_path / "set", content, states=False)
    here.done(
        *("pack", "coco", "--annotations", coco.annotations, "--images", coco.images),
        *("--workers", 0, "--out", tmp_path / "out"),
    )
    assert packed_ious(tmp_path / "out") == {str(o): 1.0 for o in range(1, 9)}


@pytest.fixture
def annotated_as_stored(tmp_path: Path, tagged: Tagged) -> CocoSet:
    """Images whose annotations belong to the stored pixels of tagged files."""
    content = {}
    image, _ = scene(SIZES["square"])
    for orientation in range(1, 9):
        stored_mask = red(
            decode_image(tagged(image, orientation).replace(b"Exif\0\0", b"Nope\0\0"))
        )
        content[f"square_{orientation}.jpg"] = (tagged(image, orientation), stored_mask)
    return write_set(tmp_path / "raw", content, states=True)


def test_ignoring_the_orientation_keeps_stored_pixels_and_drops_the_tag(
    annotated_as_stored: CocoSet, tmp_path: Path, here: "InProcess"
) -> None:
    coco = annotated_as_stored
    command = ["pack", "coco", "--annotations", coco.annotations, "--images", coco.images]
    command += ["--workers", 0]
    printed = here.done(*command, "--out", tmp_path / "out", "--exif-orientation", "ignore")
    assert "7 images carry an EXIF rotation: 7 read as stored" in printed
    assert packed_ious(tmp_path / "out") == {f"square_{o}": 1.0 for o in range(1, 9)}
    packed, original = members("*.tar", tmp_path / "out"), coco.images / "square_6.jpg"
    assert len(packed["square_6.jpg"]) == original.stat().st_size  # not encoded again
    line = here.mistake(*command, "--out", tmp_path / "out")
    assert "exif_orientation" in line


class RedImage:
    """An image whose red pixels are every prompt's mask."""

    def __init__(self, image: np.ndarray) -> None:
        self._mask = encode(red(image))

    def predict(self, prompts: ImagePrompts) -> OneMask:
        return OneMask((self._mask,) * len(prompts))


class RedModel:
    """Predicts the object from its colour, so mIoU 1 means that masks lie on objects."""

    negative_clicks = mask_prompts = True

    def embed(self, image: np.ndarray) -> RedImage:
        return RedImage(image)


def miou(out: Path, **config: Any) -> float:
    settings = EvaluateConfig(protocols=("box",), out=str(out), accelerator="cpu", **config)
    assert evaluate(settings, RedModel(), {"name": "red"}) == out
    numbers = json.loads(out.read_text())
    assert numbers["damaged"] == [], numbers["run"]["damage"][:2]
    return float(numbers["numbers"]["box"]["miou"]["all"])


def test_evaluation_compares_masks_in_the_upright_frame(
    every_orientation: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = {
        "kind": "coco",
        "annotations": str(every_orientation.annotations),
        "images": str(every_orientation.images),
    }
    assert miou(tmp_path / "a.json", **coco) == 1.0
    assert "24 images carry an EXIF rotation: 24 turned upright" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["run"]["exif_turns"] == {"turned": 24}


def test_evaluation_ignores_the_orientation_on_request(
    annotated_as_stored: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco: dict[str, Any] = {
        "kind": "coco",
        "annotations": str(annotated_as_stored.annotations),
        "images": str(annotated_as_stored.images),
    }
    assert miou(tmp_path / "a.json", **coco, exif_orientation="ignore") == 1.0
    assert "7 read as stored" in capsys.readouterr().out
    assert miou(tmp_path / "b.json", **coco) < 0.6


def test_results_of_different_frames_share_no_column(
    annotated_as_stored: CocoSet, tmp_path: Path, here: "InProcess"
) -> None:
    coco: dict[str, Any] = {
        "kind": "coco",
        "annotations": str(annotated_as_stored.annotations),
        "images": str(annotated_as_stored.images),
    }
    miou(tmp_path / "a.json", **coco, exif_orientation="ignore")
    miou(tmp_path / "b.json", **coco)
    line = here.mistake("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert "EXIF orientation: ignore" in line


@pytest.fixture
def old_shards(tmp_path: Path, tagged: Tagged, tar_of: Callable[..., Path]) -> str:
    """Shards as they were packed before: tagged files with the masks of the upright frame."""
    files: dict[str, bytes] = {}
    for name, hw in SIZES.items():
        image, mask = scene(hw)
        record = {
            "image": {"width": hw[1], "height": hw[0]},
            "annotations": [{"segmentation": encode(mask), "area": int(mask.sum())}],
        }
        for orientation in range(1, 9):
            files[f"{name}{orientation}.jpg"] = tagged(image, orientation)
            files[f"{name}{orientation}.json"] = json.dumps(record).encode()
    return str(tar_of(tmp_path / "old.tar", files))


def test_old_shards_are_read_upright(old_shards: str, tmp_path: Path, here: "InProcess") -> None:
    assert miou(tmp_path / "a.json", shards=old_shards) == 1.0
    assert "24 samples" in here.done("check-shards", old_shards, "--workers", 0)


def test_training_sees_masks_on_the_objects_of_old_shards(old_shards: str) -> None:
    config = DataConfig(train=old_shards, heldout=None, workers=0)
    reader = build_reader(open_splits(config).train, MASK_SUFFIXES, config)
    selection = MaskSelectionConfig(masks_per_image=1, flip=0.0)
    dataset = MaskDataset(reader, selection, Frame(64, "pad", exact=True), seed=0)
    batch = dataset.collate(dataset.__getitems__([SampleRef(0, i) for i in range(24)]))
    assert not any(batch.corrupt)
    for image, [mask] in zip(batch.image, batch.masks.unbind(), strict=True):
        small = torch.nn.functional.avg_pool2d(image[None].float(), 4)[0].permute(1, 2, 0).numpy()
        assert iou(red(small), mask.numpy()) == 1.0


@pytest.mark.parametrize("long_side", [None, 60])
def test_sa1b_is_packed_upright(
    old_shards: str, long_side: int | None, tmp_path: Path, here: "InProcess"
) -> None:
    more = [] if long_side is None else ["--long-side", long_side]
    out = tmp_path / "out"
    printed = here.done("pack", "sa1b", "--source", old_shards, "--out", out, "--workers", 0, *more)
    assert "21 images carry an EXIF rotation: 21 turned upright" in printed
    ious = packed_ious(out)
    assert len(ious) == 24
    assert min(ious.values()) == pytest.approx(1.0, abs=0.0 if long_side is None else 0.15)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_prediction_is_made_in_the_upright_frame(
    orientation: int, tagged: Tagged, tiny: "TinyModel", tmp_path: Path, here: "InProcess"
) -> None:
    """The same prompts give the same masks as on a file whose pixels are upright already."""
    image, _ = scene(SIZES["tall"])
    (tmp_path / "tagged.png").write_bytes(tagged(image, orientation, "PNG"))
    Image.fromarray(image).save(tmp_path / "plain.png")
    masks = {}
    for name in ("tagged", "plain"):
        options = {"image": tmp_path / f"{name}.png", "out": tmp_path / name}
        npz = tmp_path / f"{name}.npz"
        prompt = ["--box", "8,8,31,60"]  # outside of the stored frame where that is 64 x 48
        printed = here.done(*tiny.predict(*prompt, "--npz", npz, **options))
        assert ("1 image carries an EXIF rotation: 1 turned upright" in printed) == (
            name == "tagged" and orientation != 1
        )
        with np.load(npz) as file:
            masks[name] = file["masks"]
    assert masks["tagged"].shape[-2:] == SIZES["tall"]
    np.testing.assert_array_equal(masks["tagged"], masks["plain"])
    drawn = [np.array(Image.open(tmp_path / name / "mask_0.png")) for name in masks]
    np.testing.assert_array_equal(drawn[0], drawn[1])


def test_everything_labels_upright_pixels_and_names_what_it_passes_over(
    tagged: Tagged, tiny: "TinyModel", tmp_path: Path, here: "InProcess"
) -> None:
    folder = tmp_path / "photos"
    (folder / "old").mkdir(parents=True)
    image, _ = scene(SIZES["square"])
    (folder / "turned.JPG").write_bytes(tagged(image, 3))
    (folder / "plain.jfif").write_bytes(tagged(image, 1))
    (folder / "notes.txt").write_text("no image")
    printed = here.done(
        *("everything", "--weights", tiny.weights, "--image", folder, "--out", tmp_path / "out"),
        *("--shards", tmp_path / "shards", "--points-per-side", 2, "--pred-iou-thresh", -1),
        *("--stability-score-thresh", 0, "--accelerator", "cpu"),
    )
    assert "skipped: 1 other file (notes.txt), 1 folder (old/)" in printed
    assert "1 image carries an EXIF rotation: 1 turned upright" in printed
    files = members("*.tar", tmp_path / "shards")
    for key in ("turned", "plain"):
        assert iou(red(decode_image(files[f"{key}.jpg"])), scene(SIZES["square"])[1]) == 1.0
        assert read_header(files[f"{key}.jpg"]).orientation == 1
    assert files["plain.jpg"] == (folder / "plain.jfif").read_bytes()


def test_imagenet_is_packed_upright_from_files_of_every_suffix(
    tagged: Tagged, tmp_path: Path, here: "InProcess"
) -> None:
    image, mask = scene(SIZES["wide"])
    source = tmp_path / "tree" / "n01"
    source.mkdir(parents=True)
    names = {"a.JPEG": "JPEG", "b.tif": "TIFF", "c.webp": "WEBP", "d.PNG": "PNG", "e.jfif": "JPEG"}
    for name, form in names.items():
        (source / name).write_bytes(tagged(image, 6, form))
    Image.fromarray(image).save(source / "f.gif")
    Image.fromarray(image).save(source / "g.bmp")
    (source / "notes.txt").write_text("no image")
    (source / "x.jpg").symlink_to(source / "gone.jpg")
    out = tmp_path / "out"
    printed = here.done(
        *("pack", "imagenet", "--source", tmp_path / "tree", "--out", out, "--workers", 0)
    )
    assert "left out: 1 .txt (n01/notes.txt), 1 broken link (n01/x.jpg)" in printed
    assert "5 images carry an EXIF rotation: 5 turned upright" in printed
    files = members("*.tar", out)
    packed = {name: data for name, data in files.items() if name.endswith(".jpg")}
    assert len(packed) == 7
    for name, data in packed.items():
        assert data.startswith(b"\xff\xd8"), name
        assert iou(red(decode_image(data)), mask) == 1.0, name


def test_own_coco_is_packed_upright(
    every_orientation: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from efficientsam_pl.data.config import CocoConfig
    from efficientsam_pl.recipes.promptable.custom_coco import packed_coco

    coco = CocoConfig(
        annotations=str(every_orientation.annotations), images=str(every_orientation.images)
    )
    packed = packed_coco(DataConfig(coco=coco, workers=0), tmp_path / "run")
    assert packed.train.endswith("train-*.tar")
    assert "24 images carry an EXIF rotation: 24 turned upright" in capsys.readouterr().out
    ious = packed_ious(tmp_path / "run" / "shards")
    assert len(ious) == every_orientation.count
    assert set(ious.values()) == {1.0}
