"""Average precision from run-lengths, compared with pycocotools; part of benchmarks.evaluate."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.finetune.mask_ap import EncodedImage, encoded, masked_images
from benchmarks.harness import Row, alternate, timed_rows
from efficientsam_pl.evaluation.metrics.matching import averages
from efficientsam_pl.evaluation.metrics.overlaps import PredictedMasks, coco_overlaps
from efficientsam_pl.records import Instance, InstanceImage
from efficientsam_pl.rle import area

_MASKS = 30  # per image, and as many predictions
_DRAWN = 4  # images; the others reuse their masks with other scores and categories
_ROUNDS, _SECONDS = 3, 300.0  # for the 5000 images: no round starts that would end later


@dataclass(frozen=True)
class Evaluated:
    """An image and its predictions."""

    image: InstanceImage
    predicted: PredictedMasks


def rows(quick: bool) -> list[Row]:
    """Compare on masks of one category, as in class-agnostic AP, and of COCO's eighty."""
    count = 50 if quick else 5000
    drawn = [encoded(image) for image in masked_images(_DRAWN, _MASKS)]
    measured = []
    for categories, name in ((1, "one_category"), (80, "eighty_categories")):
        measured += compared(evaluated_images(drawn, count, categories), categories, name)
    return measured


def compared(images: Sequence[Evaluated], categories: int, name: str) -> list[Row]:
    """Compare time and results with pycocotools."""
    evaluation = prepared_coco(images, categories)
    numbers: dict[str, Sequence[float]] = {}

    def ours() -> None:
        numbers["ours"] = by_us(images, categories)

    def coco() -> None:
        numbers["coco"] = by_coco(evaluation)

    taken = alternate({"ours": ours, "coco": coco}, _ROUNDS, _SECONDS)
    difference = np.subtract(numbers["ours"], numbers["coco"])
    work = (
        f"{len(images)} images of 640x480, {_MASKS} masks each and {_MASKS} predicted, categories: "
        f"{categories}"
    )
    return [
        *timed_rows(
            (f"evaluate.ap.{name}", f"evaluate.ap_processor_time.{name}"),
            f"{work}: run-lengths to COCO's twelve numbers; reference: pycocotools' evaluate and "
            "accumulate of the same run-lengths, its loading left out",
            taken["ours"],
            taken["coco"],
            goal=0.5,
        ),
        Row(
            id=f"evaluate.ap_difference.{name}",
            work=f"{work}: the largest difference to pycocotools' numbers",
            value=float(np.abs(difference).max()),
            unit="AP",
            goal=1e-9,
        ),
    ]


def evaluated_images(
    drawn: Sequence[EncodedImage], images: int, categories: int
) -> list[Evaluated]:
    """Make images that reuse the masks of a few, with different categories and scores."""
    draw = np.random.default_rng(1)
    made = []
    for number in range(images):
        masks = drawn[number % len(drawn)]
        kinds = draw.integers(1, categories + 1, len(masks.truth)).tolist()
        instances = tuple(
            Instance(place, kind, mask, float(area(mask)))
            for place, (kind, mask) in enumerate(zip(kinds, masks.truth, strict=True))
        )
        image = InstanceImage(number, "", (480, 640), instances)
        scores = draw.random(len(masks.predicted)).tolist()
        made.append(Evaluated(image, PredictedMasks(kinds, masks.predicted, scores)))
    return made


def by_us(images: Sequence[Evaluated], categories: int) -> tuple[float, ...]:
    """Compute the twelve metrics from run-lengths."""
    overlaps = (coco_overlaps(entry.image, entry.predicted) for entry in images)
    return averages(overlaps, range(1, categories + 1))


def by_coco(evaluation: Any) -> list[float]:
    """Compute the metrics by pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats: list[float] = evaluation.stats.tolist()
    return stats


def prepared_coco(images: Sequence[Evaluated], categories: int) -> Any:
    """Prepare pycocotools' evaluation with all data loaded."""
    truth: list[dict[str, Any]] = []
    results = []
    for entry in images:
        for instance in entry.image.instances:
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": entry.image.id,
                    "category_id": instance.category_id,
                    "segmentation": instance.mask,
                    "area": instance.area,
                    "iscrowd": 0,
                }
            )
        columns = (entry.predicted.category_ids, entry.predicted.masks, entry.predicted.scores)
        results += [
            {"image_id": entry.image.id, "category_id": kind, "segmentation": mask, "score": score}
            for kind, mask, score in zip(*columns, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": entry.image.id, "height": 480, "width": 640} for entry in images],
            "annotations": truth,
            "categories": [{"id": number} for number in range(1, categories + 1)],
        }
        coco.createIndex()
        return COCOeval(coco, coco.loadRes(results), "segm")
