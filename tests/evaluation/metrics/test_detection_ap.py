"""Box and mask AP with categories against pycocotools, in one process and in two."""

import contextlib
import io
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from efficientsam_pl.evaluation.metrics.detection_ap import DetectedObjects, DetectionAp
from efficientsam_pl.records import Instance, InstanceImage
from efficientsam_pl.rle import area, encode, encode_many

CLASSES, HW = 5, (60, 75)  # class 4 has no image


@dataclass(frozen=True)
class Made:
    """An image of a made-up set: objects with their boxes, and detections."""

    truth: InstanceImage
    found: DetectedObjects


def ellipse(draw: np.random.Generator, around: np.ndarray | None = None) -> np.ndarray:
    """Draw a mask's centre and radii, anew or near another's."""
    if around is not None:
        return around * draw.uniform(0.85, 1.15, 4)
    return draw.uniform((10, 10, 2, 2), (50, 65, 25, 25))


def masks_of(shapes: list[np.ndarray]) -> np.ndarray:
    y, x = np.mgrid[: HW[0], : HW[1]]
    top, left, high, wide = np.array(shapes).reshape(-1, 4, 1, 1).transpose(1, 0, 2, 3)
    return ((y - top) / high) ** 2 + ((x - left) / wide) ** 2 <= 1


def made_set(seed: int, images: int = 12) -> list[Made]:
    """Make images with crowds, small and large objects, tied scores and surplus detections."""
    draw, made = np.random.default_rng(seed), []
    for number in range(images):
        shapes = [ellipse(draw) for _ in range(draw.integers(0, 9))]
        instances = []
        for shape in shapes:
            rle = encode(masks_of([shape])[0])
            crowd = bool(draw.random() < 0.15)
            instances.append(
                Instance(len(instances), int(draw.integers(4)), rle, float(area(rle)), crowd)
            )
        known = [(s, i.category_id) for s, i in zip(shapes, instances, strict=True)] * 3
        guesses = [(ellipse(draw, s), c if draw.random() < 0.8 else 3) for s, c in known]
        guesses += [
            (ellipse(draw), int(draw.integers(4))) for _ in range(440 if number == 5 else number)
        ]
        masks = encode_many(masks_of([shape for shape, _ in guesses]))
        boxes = coco_mask.toBbox(masks).reshape(-1, 4) if masks else np.zeros((0, 4))
        scores = draw.integers(1, 40, len(guesses)) / 40  # many ties
        found = DetectedObjects(
            [c for _, c in guesses], scores.tolist(), boxes + draw.normal(0, 1, boxes.shape), masks
        )
        path = f"{number:03d}"
        made.append(Made(InstanceImage(number, path, HW, tuple(instances)), found))
    return made


def by_pycocotools(made: list[Made], kind: str) -> tuple[list[float], list[float]]:
    """Return the twelve numbers and the AP of each class."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, image in enumerate(made):
        for i in image.truth.instances:
            box = coco_mask.toBbox(i.mask).tolist()
            common = {"image_id": number, "category_id": i.category_id + 1, "area": i.area}
            own = {"id": len(annotations) + 1, "segmentation": i.mask, "iscrowd": int(i.crowd)}
            annotations.append(common | own | {"bbox": box})
        found = image.found
        columns = zip(found.classes, found.scores, found.boxes_xywh, found.masks, strict=True)
        for class_, score, xywh, mask in columns:
            shape = {"bbox": xywh.tolist()} if kind == "bbox" else {"segmentation": mask}
            entry = {"image_id": number, "category_id": class_ + 1, "score": score}
            results.append(entry | shape)
    coco = COCO()
    coco.dataset = {
        "images": [{"id": n, "height": HW[0], "width": HW[1]} for n in range(len(made))],
        "annotations": annotations,
        "categories": [{"id": c + 1, "name": str(c)} for c in range(CLASSES)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    classes = [precision[:, :, c] for c in range(CLASSES)]
    each = [float(p[p > -1].mean()) if (p > -1).any() else -1.0 for p in classes]
    return evaluation.stats.tolist(), each


@pytest.mark.parametrize("seed", [0, 1])
def test_made_up_sets_give_pycocotools_numbers(seed: int) -> None:
    made = made_set(seed)
    metric = DetectionAp(CLASSES)
    order = list(made)
    random.Random(seed).shuffle(order)
    for image in [*order, order[0]]:  # one twice, as where ranks are padded
        metric.update(image.truth.path, image.truth, image.found)
    scores = metric.compute()
    for kind, ours, by_class in (
        ("bbox", scores.box, scores.box_by_class),
        ("segm", scores.mask, scores.mask_by_class),
    ):
        twelve, each = by_pycocotools(made, kind)
        assert ours == pytest.approx(twelve, abs=1e-9)
        assert by_class == pytest.approx(each, abs=1e-9)
        assert by_class[4] == -1


def test_perfect_detections_score_one_and_none_scores_zero() -> None:
    image = next(image for image in made_set(3) if len(image.truth.instances) > 2)
    objects = [i for i in image.truth.instances if not i.crowd]
    masks = [i.mask for i in objects]
    perfect = DetectedObjects(
        [i.category_id for i in objects], [1.0] * len(objects), coco_mask.toBbox(masks), masks
    )
    metric = DetectionAp(CLASSES)
    metric.update("a", image.truth, perfect)
    assert metric.compute().box.ap == pytest.approx(1)
    assert metric.compute().mask.ap == pytest.approx(1)
    metric.reset()
    metric.update("a", image.truth, DetectedObjects([], [], np.zeros((0, 4)), []))
    assert metric.compute().box.ap == 0


def test_a_set_without_objects_has_no_ap() -> None:
    metric = DetectionAp(CLASSES)
    empty = DetectedObjects([], [], np.zeros((0, 4)), [])
    metric.update("a", InstanceImage(0, "a", HW, ()), empty)
    assert metric.compute().box.ap == -1
