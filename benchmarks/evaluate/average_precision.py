"""Average precision from run-lengths, beside pycocotools: a part of benchmarks.evaluate."""

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
from efficientsam_pl.rle import area
from efficientsam_pl.structures import Instance, InstanceImage

_MASKS = 30  # of a photo, and as many found
_DRAWN = 4  # photos; the others repeat their masks with other scores and categories
_ROUNDS, _SECONDS = 3, 300.0  # of the 5000 photos: no round begins that would end later


@dataclass(frozen=True)
class Evaluated:
    """A photo and what was found in it."""

    photo: InstanceImage
    found: PredictedMasks


def rows(quick: bool) -> list[Row]:
    """Masks of one category, as where only masks are judged, and of COCO's eighty."""
    count = 50 if quick else 5000
    drawn = [encoded(photo) for photo in masked_images(_DRAWN, _MASKS)]
    measured = []
    for categories, name in ((1, "one_category"), (80, "eighty_categories")):
        measured += compared(evaluated_images(drawn, count, categories), categories, name)
    return measured


def compared(photos: Sequence[Evaluated], categories: int, name: str) -> list[Row]:
    """Our seconds beside pycocotools', and how far the numbers are apart."""
    evaluation = prepared_coco(photos, categories)
    numbers: dict[str, Sequence[float]] = {}

    def ours() -> None:
        numbers["ours"] = by_us(photos, categories)

    def coco() -> None:
        numbers["coco"] = by_coco(evaluation)

    taken = alternate({"ours": ours, "coco": coco}, _ROUNDS, _SECONDS)
    difference = np.subtract(numbers["ours"], numbers["coco"])
    work = (
        f"{len(photos)} photos of 640x480, {_MASKS} masks each and {_MASKS} found, categories: "
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
    drawn: Sequence[EncodedImage], photos: int, categories: int
) -> list[Evaluated]:
    """So many photos with the masks of a few, with categories and scores of their own."""
    draw = np.random.default_rng(1)
    made = []
    for number in range(photos):
        masks = drawn[number % len(drawn)]
        kinds = draw.integers(1, categories + 1, len(masks.truth)).tolist()
        instances = tuple(
            Instance(place, kind, mask, float(area(mask)))
            for place, (kind, mask) in enumerate(zip(kinds, masks.truth, strict=True))
        )
        photo = InstanceImage(number, "", (480, 640), instances)
        scores = draw.random(len(masks.found)).tolist()
        made.append(Evaluated(photo, PredictedMasks(kinds, masks.found, scores)))
    return made


def by_us(photos: Sequence[Evaluated], categories: int) -> tuple[float, ...]:
    """Run-lengths to the twelve numbers."""
    overlaps = (coco_overlaps(one.photo, one.found) for one in photos)
    return averages(overlaps, range(1, categories + 1))


def by_coco(evaluation: Any) -> list[float]:
    """The same by pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats: list[float] = evaluation.stats.tolist()
    return stats


def prepared_coco(photos: Sequence[Evaluated], categories: int) -> Any:
    """pycocotools' evaluation, all loaded."""
    truth: list[dict[str, Any]] = []
    results = []
    for one in photos:
        for instance in one.photo.instances:
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": one.photo.id,
                    "category_id": instance.category_id,
                    "segmentation": instance.mask,
                    "area": instance.area,
                    "iscrowd": 0,
                }
            )
        columns = (one.found.category_ids, one.found.masks, one.found.scores)
        results += [
            {"image_id": one.photo.id, "category_id": kind, "segmentation": mask, "score": score}
            for kind, mask, score in zip(*columns, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": one.photo.id, "height": 480, "width": 640} for one in photos],
            "annotations": truth,
            "categories": [{"id": number} for number in range(1, categories + 1)],
        }
        coco.createIndex()
        return COCOeval(coco, coco.loadRes(results), "segm")
