"""Score one image by every protocol: the engine of `evaluate` and of validation while training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from efficientsam_pl.evaluation.config import ValidationConfig
from efficientsam_pl.evaluation.interfaces import HasMaskGrid, PromptableImage, PromptableModel
from efficientsam_pl.evaluation.metrics.mean_iou import filled_box_iou
from efficientsam_pl.evaluation.metrics.reachable import GridIous
from efficientsam_pl.evaluation.protocols.base import (
    EvalContext,
    InstanceProtocol,
    InstanceResult,
    promptable_instances,
)
from efficientsam_pl.evaluation.protocols.clicks import IterativeClicks
from efficientsam_pl.evaluation.protocols.detector_boxes import BoxDetection, DetectorBoxes
from efficientsam_pl.evaluation.protocols.registry import protocol
from efficientsam_pl.evaluation.results.record import ImageRecord, PredictedObject, ProtocolScores
from efficientsam_pl.records import Instance, InstanceImage

ANY = 1  # the only category of a set without categories


@dataclass(frozen=True, kw_only=True)
class ImageEvaluator:
    """A model and the protocols that score it.

    `boxes` None: there is no detector. `keeps_boxed`: predictions from tight boxes are kept as
    detections of one category, scored by their predicted IoU. `prompts_at_once` bounds memory and
    changes no result. `oracle`: the best candidates are scored too, for which every candidate is
    brought to the image's size.
    """

    model: PromptableModel
    protocols: tuple[InstanceProtocol, ...]
    boxes: DetectorBoxes | None = None
    keeps_boxed: bool = False
    seed: int = 0
    prompts_at_once: int = 32
    oracle: bool = True

    def check(self) -> None:
        """Reject a model that lacks support for any of the prompts.

        Raises:
            UserError: With the reason.
        """
        for each in self.protocols:
            each.check(self.model)
        if self.boxes is not None:
            self.boxes.check(self.model)

    def evaluate(
        self,
        number: int,
        image: UInt8[np.ndarray, "h w 3"],
        annotations: InstanceImage,
        detections: Sequence[BoxDetection] = (),
    ) -> ImageRecord:
        """Score an image; one without anything to prompt for is not embedded.

        Args:
            number: Number of the image in its set.
            image: RGB.
            annotations: Instances of the image.
            detections: Boxes that a detector predicted in the image.
        """
        instances, _ = promptable_instances(annotations.instances)
        embedded = self.model.embed(image) if instances or detections else None
        return self.evaluate_embedded(number, embedded, annotations, detections)

    def evaluate_embedded(
        self,
        number: int,
        embedded: PromptableImage | None,
        annotations: InstanceImage,
        detections: Sequence[BoxDetection] = (),
    ) -> ImageRecord:
        """Score an image that the model has embedded; see `evaluate`.

        Args:
            number: Number of the image in its set.
            embedded: The image; None only where there is nothing to prompt for.
            annotations: Instances of the image.
            detections: Boxes that a detector predicted in the image.
        """
        instances, skipped = promptable_instances(sorted(annotations.instances, key=_id))
        scores = {each.name: ProtocolScores((), ()) for each in self.protocols}
        predicted: list[PredictedObject] = []
        truth = [instance.mask for instance in instances]
        grid = GridIous(np.zeros(0), np.zeros(0))
        if instances or detections:
            assert embedded is not None, "an image with something to prompt for is embedded"
            context = EvalContext(
                model=self.model,
                image=embedded,
                key=annotations.random_key(),
                seed=self.seed,
                prompts_at_once=self.prompts_at_once,
                oracle=self.oracle,
            )
            results = predict_all(self.protocols, context, instances)
            scores = {name: _scores(of_protocol) for name, of_protocol in results.items()}
            if "box" in results and isinstance(embedded, HasMaskGrid):
                grid = embedded.grid_ious(truth)
            if self.keeps_boxed:
                predicted = [PredictedObject(ANY, r.score, r.mask) for r in results["box"]]
            if self.boxes is not None:
                masks = self.boxes.predict(
                    context, detections, annotations.image_hw, annotations.instances
                )
                predicted = [PredictedObject(m.category_id, m.score, m.mask) for m in masks]
        return ImageRecord(
            photo=number,
            instances=tuple(instance.id for instance in instances),
            areas=tuple(float(instance.area) for instance in instances),
            filled_box=tuple(filled_box_iou(truth).tolist()),
            filled_box_grid=tuple(grid.filled_box.tolist()),
            reachable=tuple(grid.reachable.tolist()),
            marks=scores,
            detections=tuple(predicted),
            crowds=skipped["crowd"],
            empty=skipped["zero_area"],
        )


def validation_evaluator(
    model: PromptableModel, config: ValidationConfig, seed: int
) -> ImageEvaluator:
    """Build the evaluator of a validation: its protocols and mask AP from boxes, no oracle."""
    return ImageEvaluator(
        model=model,
        protocols=tuple(map(protocol, config.protocols())),
        keeps_boxed=True,
        seed=seed,
        prompts_at_once=config.prompts_at_once,
        oracle=False,
    )


def predict_all(
    protocols: Sequence[InstanceProtocol], context: EvalContext, instances: Sequence[Instance]
) -> dict[str, list[InstanceResult]]:
    """Predict the instances by every protocol; iterative clicks share their rounds."""
    iterative = {each.count: each for each in protocols if isinstance(each, IterativeClicks)}
    results: dict[str, list[InstanceResult]] = {}
    if iterative:
        longest = iterative[max(iterative)]
        by_count = longest.predict_counts(context, instances, sorted(iterative))
        results = {iterative[n].name: after_n for n, after_n in by_count.items()}
    return {
        each.name: results[each.name] if each.name in results else each.predict(context, instances)
        for each in protocols
    }


def _id(instance: Instance) -> int:
    return instance.id


def _scores(results: Sequence[InstanceResult]) -> ProtocolScores:
    return ProtocolScores(
        chosen=tuple(result.iou for result in results),
        oracle=tuple(result.best_iou for result in results if result.best_iou is not None),
    )
