"""`efficientsam check-coco`: it reports what packing then does, on files as programs write them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.data.config import CocoConfig
from efficientsam_pl.data.packing.custom_coco import CustomCoco
from efficientsam_pl.data.packing.runner import ArrayShare
from efficientsam_pl.errors import UserError

if TYPE_CHECKING:
    from tests.integration.conftest import InProcess, Outcome

SQUARE = [[2, 2, 20, 2, 20, 20, 2, 20]]
LARGE = [[0, 0, 98, 0, 98, 98, 0, 98]]
HALF_TURN, QUARTER_TURN = 3, 6


class Set:
    """A set that a test fills; names in the file may differ from those in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "set.json"
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.more: dict[str, Any] = {"categories": [{"id": 1, "name": "car"}]}
        self.encoding = "utf-8"
        (folder / "images").mkdir(parents=True)

    def image(
        self, name: str, hw: tuple[int, int] = (30, 40), file: str | None = None, exif: int = 1
    ) -> int:
        """Write an image and list it; return its id."""
        number = len(self.images) + 1
        path = self.folder / "images" / (file or name)
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (*hw, 3), dtype=np.uint8)
        tags = Image.Exif()
        tags[0x0112] = exif
        Image.fromarray(pixels).save(path, exif=tags)
        return self.listed(name, hw)

    def listed(self, name: str, hw: tuple[int, int] = (30, 40)) -> int:
        """List an image without a file."""
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": name, "height": hw[0], "width": hw[1]})
        return number

    def mask(self, image: int, segmentation: Any = SQUARE, **more: Any) -> None:
        record = {"id": len(self.annotations) + 1, "image_id": image, "category_id": 1}
        self.annotations.append({**record, "segmentation": segmentation, **more})

    def write(self) -> None:
        content = {"images": self.images, "annotations": self.annotations, **self.more}
        self.file.write_text(json.dumps(content, ensure_ascii=False), self.encoding)


@pytest.fixture
def coco_set(tmp_path: Path) -> Set:
    """Two images with a car each."""
    made = Set(tmp_path / "set")
    for name in ("a.jpg", "b.png"):
        made.mask(made.image(name))
    return made


def check(here: "InProcess", coco_set: Set, *options: str) -> "tuple[Outcome, dict[str, Any]]":
    coco_set.write()
    report = coco_set.folder / "report.json"
    outcome = here("check-coco", coco_set.file, coco_set.folder / "images", "--json", report,
                   *options)  # fmt: skip
    assert outcome.err == ""
    return outcome, json.loads(report.read_text())


def kinds(entries: list[dict[str, str]]) -> list[str]:
    return [entry["kind"] for entry in entries]


def test_clean_set_is_reported_with_exit_code_0(here: "InProcess", coco_set: Set) -> None:
    coco_set.mask(coco_set.image("c.jpg", (100, 100)), LARGE)
    coco_set.mask(2, SQUARE, iscrowd=1)
    outcome, report = check(here, coco_set)
    assert outcome.code == 0, outcome.out
    assert outcome.out.splitlines()[1:] == [
        "images       3 listed, 3 usable",
        "annotations  4: 3 objects, 1 crowd, 0 empty masks",
        "sizes        2 small, 0 medium, 1 large",
        "categories   car 3",
        "pack coco would write 3 images and 4 masks, 0 skipped",
        "finetune can train on it: 3 images with masks",
    ]
    assert report["clean"] is report["finetune"] is True
    assert report["left_out"] == report["repaired"] == report["copies"] == []


def byte_order_mark(coco_set: Set) -> None:
    coco_set.encoding = "utf-8-sig"


def restarting_ids(coco_set: Set) -> None:
    for annotation in coco_set.annotations:
        annotation["id"] = 1


def paths_of_other_machines(coco_set: Set) -> None:
    for name, file in (
        ("train\\c.jpg", "train/c.jpg"),
        ("C:\\me\\set\\d%20e.JPG", "d e.jpg"),
        ("https://host/up/f.jpg", "f.jpg"),
        ("../images/g.jpg", "g.jpg"),
    ):
        coco_set.mask(coco_set.image(name, file=file))
    coco_set.mask(coco_set.listed("../../etc/passwd"))
    coco_set.mask(coco_set.listed("gone.jpg"))


def boxes_only(coco_set: Set) -> None:
    for annotation in coco_set.annotations:
        annotation |= {"segmentation": [], "bbox": [1, 1, 5, 5]}


def crowds_only(coco_set: Set) -> None:
    for annotation in coco_set.annotations:
        annotation["iscrowd"] = 1


def merged_export(coco_set: Set) -> None:
    """Two exports of one image, the second with its own ids and one more mask."""
    image = dict(coco_set.images[0])
    coco_set.images.append({**image, "id": 77})
    coco_set.mask(77, id=1)
    coco_set.mask(77, [[1, 1, 9, 1, 9, 9]], id=2)


def odd_masks(coco_set: Set) -> None:
    image = coco_set.image("c.jpg")
    coco_set.mask(image, [*SQUARE, [1, 2], []])
    coco_set.mask(image, [[5, 5, 5, 5, 5, 5]])
    coco_set.mask(image, {"size": [3, 3], "counts": [9]})
    coco_set.mask(image, {"size": [30.0, 40.0], "counts": [10.0, 20.0, 1170.0]}, area=-3)
    coco_set.mask(image, None)
    coco_set.mask(image, [[float("nan"), 1, 2, 3, 4, 5]])
    coco_set.mask(99)


def unusable_images(coco_set: Set) -> None:
    coco_set.mask(coco_set.image("c.jpg"))
    coco_set.images[-1]["height"] = 31
    coco_set.mask(coco_set.image("torn.jpg"))
    (coco_set.folder / "images/torn.jpg").write_bytes(b"no image")
    coco_set.mask(coco_set.image("sizeless.jpg"))
    coco_set.mask(coco_set.images[-1]["id"], {"size": [3, 3], "counts": [9]})
    del coco_set.images[-1]["height"]


def rotated_images(coco_set: Set) -> None:
    coco_set.mask(coco_set.image("half.jpg", exif=HALF_TURN))
    coco_set.mask(coco_set.image("stored.jpg", exif=QUARTER_TURN))
    coco_set.mask(coco_set.image("upright.jpg", exif=QUARTER_TURN))
    coco_set.images[-1] |= {"height": 40, "width": 30}


def other_categories(coco_set: Set) -> None:
    coco_set.mask(1, category_id=None)
    coco_set.mask(2, category_id=5)


def no_categories(coco_set: Set) -> None:
    coco_set.more = {}


def a_copy(coco_set: Set) -> None:
    coco_set.mask(coco_set.listed("copy.jpg"))
    content = (coco_set.folder / "images/a.jpg").read_bytes()
    (coco_set.folder / "images/copy.jpg").write_bytes(content)


def copies_of_one(coco_set: Set) -> None:
    (coco_set.folder / "images/b.png").unlink()
    (coco_set.folder / "images/b.png").symlink_to("a.jpg")


FILES = [
    byte_order_mark, restarting_ids, paths_of_other_machines, boxes_only, crowds_only,
    merged_export, odd_masks, unusable_images, rotated_images, other_categories, no_categories,
    a_copy, copies_of_one,
]  # fmt: skip


@pytest.mark.parametrize("crowds", ["ignore", "objects"])
@pytest.mark.parametrize("fill", FILES)
def test_counts_are_those_that_packing_and_finetuning_report(
    here: "InProcess", coco_set: Set, fill: Callable[[Set], None], crowds: Any
) -> None:
    fill(coco_set)
    outcome, report = check(here, coco_set, "--crowds", crowds)
    [written] = re.findall(
        r"pack coco would write (\d+ images?) and (.*), (\d+) skipped", outcome.out
    )
    out, images = coco_set.folder / "out", coco_set.folder / "images"
    packed = here("pack", "coco", "--annotations", coco_set.file, "--images", images, "--out", out,
                  "--workers", "0", "--crowds", crowds).out.splitlines()[-1]  # fmt: skip
    counts = re.fullmatch(r"(\d+ images?), (\d+ masks?)(?: \(.*\))?, (\d+) skipped .*", packed)
    assert counts is not None, packed
    assert counts.groups() == written
    counted = {"crowds": report["counts"]["crowds"], "empty_masks": report["counts"]["empty_masks"]}
    assert "of crowds" in packed if counted["crowds"] else "of crowds" not in packed
    assert "empty" in packed if counted["empty_masks"] else "empty" not in packed
    config = CocoConfig(annotations=str(coco_set.file), images=str(images), crowds=crowds)
    try:
        list(CustomCoco(config).units(ArrayShare()))
        can_finetune = True
    except UserError:
        can_finetune = False
    assert report["finetune"] == can_finetune


@pytest.mark.parametrize("fill", [byte_order_mark, no_categories])
def test_harmless_variants_are_clean(
    here: "InProcess", coco_set: Set, fill: Callable[[Set], None]
) -> None:
    fill(coco_set)
    outcome, report = check(here, coco_set)
    assert (outcome.code, report["clean"]) == (0, True), outcome.out


@pytest.mark.parametrize("fill", [f for f in FILES if f not in (byte_order_mark, no_categories)])
def test_whatever_is_repaired_left_out_or_ambiguous_is_exit_code_1(
    here: "InProcess", coco_set: Set, fill: Callable[[Set], None]
) -> None:
    fill(coco_set)
    outcome, report = check(here, coco_set)
    assert (outcome.code, report["clean"]) == (1, False), outcome.out


def test_repaired_and_missing_names_are_listed(here: "InProcess", coco_set: Set) -> None:
    paths_of_other_machines(coco_set)
    outcome, report = check(here, coco_set)
    folder = coco_set.folder / "images"
    assert [entry["detail"].rpartition(": ")[2] for entry in report["repaired"]] == [
        "slashes",
        "slashes, percent-encoding, leading folders, case",
        "slashes, URL",
        "dots",
    ]
    assert [entry["detail"] for entry in report["left_out"]] == [
        f"{folder}/../../etc/passwd (leaves the folder)",
        f"{folder}/gone.jpg",
    ]
    assert f"  image 8: {folder}/gone.jpg" in outcome.out.splitlines()
    assert report["counts"]["images"] == 8
    assert report["counts"]["usable_images"] == 6
    assert report["counts"]["without_image"] == 2


def test_merged_export_counts_each_object_once(here: "InProcess", coco_set: Set) -> None:
    merged_export(coco_set)
    _, report = check(here, coco_set)
    assert report["counts"]["images"] == 2
    assert report["counts"]["objects"] == 3
    assert sorted(set(kinds(report["repaired"]))) == [
        "annotation id used before, renumbered",
        "annotation listed twice, dropped once",
        "photo under two ids, merged",
    ]


def test_masks_are_counted_by_their_use(here: "InProcess", coco_set: Set) -> None:
    odd_masks(coco_set)
    outcome, report = check(here, coco_set)
    assert report["counts"]["objects"] == 4
    assert report["counts"]["empty_masks"] == 1
    assert report["counts"]["annotations"] == 9
    assert kinds(report["left_out"]).count("annotation that cannot be used") == 2
    assert kinds(report["left_out"]).count("annotation without a mask") == 1
    assert kinds(report["left_out"]).count("annotation with an unknown image_id") == 1
    assert "polygon pieces dropped" in kinds(report["repaired"])
    assert "1 empty mask" in outcome.out


def test_an_empty_mask_alone_is_exit_code_1(here: "InProcess", coco_set: Set) -> None:
    coco_set.mask(1, [[5, 5, 5, 5, 5, 5]])
    outcome, report = check(here, coco_set)
    assert outcome.code == 1
    assert report["counts"]["empty_masks"] == 1


def test_unusable_images_are_named_with_the_reason(here: "InProcess", coco_set: Set) -> None:
    unusable_images(coco_set)
    _, report = check(here, coco_set)
    folder = coco_set.folder / "images"
    by_entry = {entry["entry"]: entry["kind"] for entry in report["left_out"]}
    assert by_entry[f"{folder}/c.jpg"] == "size mismatch"
    assert by_entry[f"{folder}/torn.jpg"] == "bad photo"
    assert report["counts"]["usable_images"] == 3
    assert kinds(report["left_out_of_evaluation"]) == ["photo without a size"]


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_rotated_images_are_counted_and_undecided_ones_named(
    here: "InProcess", coco_set: Set, exif: str
) -> None:
    rotated_images(coco_set)
    outcome, report = check(here, coco_set, "--exif-orientation", exif)
    turned = 2 if exif == "apply" else 1
    assert report["exif"] == {"turned": turned, "as stored": 3 - turned}
    assert report["exif_undecided"] == [f"{coco_set.folder}/images/half.jpg"]
    assert "3 images carry an EXIF rotation" in outcome.out
    assert report["left_out"] == []


def test_a_header_behind_a_large_profile_is_read(here: "InProcess", coco_set: Set) -> None:
    coco_set.mask(coco_set.image("c.jpg"))
    path = coco_set.folder / "images/c.jpg"
    Image.open(path).save(path, icc_profile=bytes(300_000))
    outcome, report = check(here, coco_set)
    assert outcome.code == 0, outcome.out
    assert report["counts"]["usable_images"] == 3


def test_entries_without_a_category_are_left_out_of_evaluation_only(
    here: "InProcess", coco_set: Set
) -> None:
    other_categories(coco_set)
    _, report = check(here, coco_set)
    assert report["left_out"] == []
    assert kinds(report["left_out_of_evaluation"]) == ["annotation with an unknown category_id"]
    assert report["categories"] == {"car": 2}


def test_categories_that_evaluation_refuses_are_reported(here: "InProcess", coco_set: Set) -> None:
    coco_set.more["categories"].append({"id": 1, "name": "dog"})
    outcome, report = check(here, coco_set)
    assert outcome.code == 1
    assert "stands for two categories" in report["evaluation_refused"]
    assert "evaluate cannot use it: " in outcome.out


def test_copies_are_listed(here: "InProcess", coco_set: Set) -> None:
    a_copy(coco_set)
    outcome, report = check(here, coco_set)
    folder = coco_set.folder / "images"
    assert report["copies"] == [[f"{folder}/a.jpg", f"{folder}/copy.jpg"]]
    assert f"  {folder}/a.jpg = {folder}/copy.jpg" in outcome.out.splitlines()


@pytest.mark.parametrize(
    ("fill", "reason"),
    [
        (boxes_only, "it has no mask: its annotations have boxes at most: 2"),
        (crowds_only, "it has no mask but of crowds, which data.coco.crowds=objects takes: 2"),
        (copies_of_one, "2 images with masks that are copies of one; at least two"),
    ],
)
def test_why_nothing_can_be_trained_on_is_reported(
    here: "InProcess", coco_set: Set, fill: Callable[[Set], None], reason: str
) -> None:
    fill(coco_set)
    outcome, _ = check(here, coco_set)
    [line] = [line for line in outcome.out.splitlines() if line.startswith("finetune cannot")]
    assert reason in outcome.out[outcome.out.index(line) :]


def test_three_examples_are_printed_of_each_kind(here: "InProcess", coco_set: Set) -> None:
    for i in range(5):
        coco_set.listed(f"gone{i}.jpg")
    outcome, report = check(here, coco_set)
    lines = outcome.out.splitlines()
    first = lines.index("left out: missing photo: 5")
    assert [line.split("/")[-1] for line in lines[first + 1 : first + 5]] == [
        "gone0.jpg", "gone1.jpg", "gone2.jpg", "  ... and 2 more",
    ]  # fmt: skip
    assert len(report["left_out"]) == 5


def test_lvis_files_are_checked_by_their_own_format(here: "InProcess", coco_set: Set) -> None:
    for image in coco_set.images:
        image["coco_url"] = f"http://images.example/val2017/{image.pop('file_name')}"
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    coco_set.more["categories"][0]["frequency"] = "f"
    outcome, report = check(here, coco_set, "--kind", "lvis")
    assert outcome.code == 0, outcome.out
    assert report["counts"]["objects"] == 2
    assert "pack coco would" not in outcome.out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no COCO annotation file: it is no JSON"),
        (
            '{"images": [], "annotations": [], "info": "ä"}'.encode("cp1252"),
            "save the file as UTF-8",
        ),
        (b'{"images": []}', "it has no 'annotations'"),
        (b'{"images": [], "annotations": []}', "lists no image"),
        (b'{"images": [{"id": 1, "file_name": "gone.jpg"}], "annotations": []}', "0 of 1 image"),
    ],
)
def test_unusable_files_end_with_a_line(
    here: "InProcess", tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "set.json").write_bytes(content)
    line = here.mistake("check-coco", tmp_path / "set.json", tmp_path)
    assert message in line
    assert len(line) < 400


def test_one_id_of_two_files_is_refused(here: "InProcess", coco_set: Set) -> None:
    coco_set.images[1]["id"] = 1
    coco_set.write()
    line = here.mistake("check-coco", coco_set.file, coco_set.folder / "images")
    assert "image id 1 stands for two files, a.jpg and b.png" in line


def test_a_set_in_a_store_is_checked_as_a_local_one(here: "InProcess", coco_set: Set) -> None:
    a_copy(coco_set)
    paths_of_other_machines(coco_set)
    coco_set.write()
    store = f"memory://{coco_set.folder.parent.name}"
    memory = fsspec.filesystem("memory")
    memory.put(str(coco_set.folder), store, recursive=True)
    [folder] = [path for path in memory.find(store) if path.endswith("/set.json")]
    there = f"memory:/{folder.removesuffix('/set.json')}"
    local = here("check-coco", coco_set.file, coco_set.folder / "images")
    stored = here("check-coco", f"{there}/set.json", f"{there}/images")
    assert stored.code == local.code == 1
    assert stored.out.replace(there, "") == local.out.replace(str(coco_set.folder), "")
