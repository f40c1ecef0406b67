"""LVIS's average precision against the lvis package, on detections in which its rules matter."""

import copy
import json
import logging
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientsam_pl import rle
from efficientsam_pl.evaluation.metrics.lvis import lvis_averages
from efficientsam_pl.evaluation.metrics.overlaps import PredictedMasks, lvis_overlaps
from efficientsam_pl.records import Instance, InstanceImage

pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated")  # the package's


@pytest.fixture(scope="module")
def lvis() -> Iterator[Any]:
    """The lvis package 0.5.3, which uses a name that numpy 2 dropped, with its log kept quiet."""
    handlers = list(logging.root.handlers)
    with pytest.MonkeyPatch.context() as patch:
        drawing: Any = types.ModuleType("lvis.vis")
        drawing.LVISVis = None  # what draws needs OpenCV with a screen
        patch.setitem(sys.modules, "lvis.vis", drawing)
        package = pytest.importorskip("lvis")
        patch.setattr(np, "float", float, raising=False)
        logging.root.handlers[:] = handlers
        logging.getLogger("lvis").setLevel(logging.ERROR)
        yield package


def by_lvis(lvis: Any, path: Path, truth: dict[str, Any], results: list[Any]) -> list[float]:
    path.write_text(json.dumps(truth))
    known = lvis.LVIS(str(path))
    evaluation = lvis.LVISEval(known, lvis.LVISResults(known, copy.deepcopy(results)), "segm")
    evaluation.run()
    return [float(value) for value in evaluation.get_results().values()]


def by_us(truth: dict[str, Any], results: list[Any]) -> tuple[float, ...]:
    photos = []
    for image in truth["images"]:
        own = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
        hw = (image["height"], image["width"])
        photo = InstanceImage(
            image["id"],
            "",
            hw,
            tuple(
                Instance(
                    one["id"],
                    one["category_id"],
                    rle.from_coco(one["segmentation"], *hw),
                    float(one["area"]),
                )
                for one in own
            ),
            exhaustive=False,
            absent=frozenset(image["neg_category_ids"]),
            incomplete=frozenset(image["not_exhaustive_category_ids"]),
        )
        found = [one for one in results if one["image_id"] == image["id"]]
        masks = PredictedMasks(
            [one["category_id"] for one in found],
            [one["segmentation"] for one in found],
            [one["score"] for one in found],
        )
        photos.append(lvis_overlaps(photo, masks))
    return lvis_averages(photos, {one["id"]: one["frequency"] for one in truth["categories"]})


def shifted(mask: rle.Rle, draw: np.random.Generator) -> rle.Rle:
    pixels = np.roll(rle.decode(mask), draw.integers(-3, 4, 2), (0, 1))
    if draw.random() < 0.3:
        pixels[:, : pixels.shape[1] // 2] = False
    return rle.encode(pixels)


def perturbed(truth: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Moved and cut masks under true, absent, incomplete and unlabelled categories, and ties."""
    draw = np.random.default_rng(seed)
    images = {image["id"]: image for image in truth["images"]}
    every = [one["id"] for one in truth["categories"]]
    results = []
    for one in truth["annotations"]:
        image = images[one["image_id"]]
        mask = rle.from_coco(one["segmentation"], image["height"], image["width"])
        told = [one["category_id"], *image["neg_category_ids"][:2]]
        told += image["not_exhaustive_category_ids"][:2]
        for category in [*told, int(draw.choice(every))]:
            if draw.random() < 0.7:
                score = float(draw.integers(0, 20)) / 20
                results.append(
                    {
                        "image_id": one["image_id"],
                        "category_id": category,
                        "segmentation": shifted(mask, draw),
                        "score": score,
                    }
                )
    draw.shuffle(results)
    return results


@pytest.fixture(scope="module")
def truth(shared: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(
        (shared / "data/lvis_val_100/lvis_val_100.json").read_text()
    )
    images = loaded["images"][::3]
    ids = {image["id"] for image in images}
    kept = [one for one in loaded["annotations"] if one["image_id"] in ids]
    return loaded | {"images": images, "annotations": kept}


@pytest.mark.parametrize("seed", range(2))
def test_perturbed_masks_score_what_the_lvis_package_gives(
    lvis: Any, tmp_path: Path, truth: dict[str, Any], seed: int
) -> None:
    results = perturbed(truth, seed)
    expected = by_lvis(lvis, tmp_path / "truth.json", truth, results)
    assert len({round(value, 6) for value in expected}) == 13
    assert by_us(truth, results) == pytest.approx(expected, abs=1e-9)


def drawn(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Rectangles on a coarse grid, some empty; 400 detections in some images, few scores."""
    draw = np.random.default_rng(seed)
    categories = [{"id": n, "frequency": "rcf"[n % 3], "name": str(n)} for n in range(1, 7)]
    images, annotations, results = [], [], []
    for number in range(1, 7):
        told = draw.permutation(np.arange(1, 7)).tolist()
        images.append({"id": number, "height": 120, "width": 160})
        images[-1] |= {"neg_category_ids": told[:2], "not_exhaustive_category_ids": told[3:5]}
        for _ in range(12):
            annotation: dict[str, Any] = {"id": len(annotations) + 1, "image_id": number}
            annotation |= {"category_id": int(draw.choice(told[2:5]))}
            annotation |= {"segmentation": rectangle(draw)}
            annotation |= {"area": float(rle.area(annotation["segmentation"]))}
            annotations.append(annotation)
        for _ in range(draw.choice([40, 400])):
            result = {"image_id": number, "category_id": int(draw.integers(1, 7))}
            result |= {"segmentation": rectangle(draw), "score": float(draw.integers(0, 9)) / 9}
            results.append(result)
    return {"images": images, "annotations": annotations, "categories": categories}, results


def rectangle(draw: np.random.Generator) -> rle.Rle:
    mask = np.zeros((120, 160), dtype=bool)
    y, x = 16 * draw.integers(0, 3), 16 * draw.integers(0, 4)
    height, width = 32 * draw.integers(1, 4, 2)  # areas on the ranges' borders, too
    mask[y : y + height, x : x + width] = draw.random() < 0.95
    return rle.encode(mask)


@pytest.mark.parametrize("seed", range(4))
def test_drawn_rectangles_score_what_the_lvis_package_gives(
    lvis: Any, tmp_path: Path, seed: int
) -> None:
    truth, results = drawn(seed)
    expected = by_lvis(lvis, tmp_path / "truth.json", truth, results)
    assert len(set(expected)) > 9
    assert by_us(truth, results) == pytest.approx(expected, abs=1e-12)


def photo(*, absent: set[int], incomplete: set[int]) -> InstanceImage:
    """One square of category 1."""
    instance = Instance(1, 1, square(0), 1600.0)
    return InstanceImage(
        1, "", (90, 90), (instance,), False, frozenset(absent), frozenset(incomplete)
    )


def square(at: int) -> rle.Rle:
    mask = np.zeros((90, 90), dtype=bool)
    mask[at : at + 40, at : at + 40] = True
    return rle.encode(mask)


@pytest.mark.parametrize(
    ("absent", "incomplete", "ap"),
    [({2}, set(), 0.5), ({2}, {1}, 1.0)],
    ids=["complete", "incomplete"],
)
def test_a_false_alarm_is_pardoned_where_objects_are_not_all_annotated(
    absent: set[int], incomplete: set[int], ap: float
) -> None:
    found = PredictedMasks(
        [1, 1, 2, 3], [square(45), square(0), square(0), square(0)], [0.9, 0.8, 1.0, 1.0]
    )
    overlaps = lvis_overlaps(photo(absent=absent, incomplete=incomplete), found)
    # of category 3 nothing is known here
    assert sorted(overlaps.detected.category_ids.tolist()) == [1, 1, 2]
    averages = lvis_averages([overlaps], {1: "r", 2: "c", 3: "f"})
    assert averages.ap == pytest.approx(ap)
    assert (averages.ap_rare, averages.ap_common) == (pytest.approx(ap), -1)


def test_three_hundred_detections_of_a_image_are_looked_at() -> None:
    found = PredictedMasks([1] * 301, [square(45)] * 300 + [square(0)], [0.9] * 300 + [0.8])
    overlaps = lvis_overlaps(photo(absent=set(), incomplete=set()), found)
    assert len(overlaps.rank) == 300
    assert lvis_averages([overlaps], {1: "f"}).ar300 == 0


def test_wrong_masks_are_refused() -> None:
    own = photo(absent=set(), incomplete=set())
    with pytest.raises(ValueError, match="2 categories, 1 masks, 1 scores in image 1"):
        lvis_overlaps(own, PredictedMasks([1, 1], [square(0)], [0.5]))
    with pytest.raises(ValueError, match="image 1 has a non-finite score"):
        lvis_overlaps(own, PredictedMasks([1], [square(0)], [float("nan")]))
    other = rle.encode(np.ones((3, 4), dtype=bool))
    with pytest.raises(ValueError, match=r"masks of size \(3, 4\) in image 1 of size \(90, 90\)"):
        lvis_overlaps(own, PredictedMasks([1], [other], [0.5]))
