"""One photo asked by every protocol: what becomes a line of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from efficientsam_pl.evaluation.interfaces import HasMaskGrid, PromptableModel
from efficientsam_pl.evaluation.metrics.mean_iou import filled_box_iou
from efficientsam_pl.evaluation.metrics.reachable import GridIous
from efficientsam_pl.evaluation.protocols.base import (
    EvalContext,
    InstanceProtocol,
    InstanceResult,
    askable,
)
from efficientsam_pl.evaluation.protocols.detector_boxes import BoxDetection, DetectorBoxes
from efficientsam_pl.evaluation.results.record import ImageRecord, PredictedObject, ProtocolScores
from efficientsam_pl.structures import InstanceImage

ANY = 1  # the one category where there are none


@dataclass(frozen=True, kw_only=True)
class ImageEvaluator:
    """Who is asked, and all that is asked.

    `boxes` None: there is no detector. `keeps_boxed`: answers to tight boxes are kept as
    detections of one category, scored by what the segmenter expects of them. `prompts_at_once`
    bounds memory and changes no answer.
    """

    segmenter: PromptableModel
    protocols: tuple[InstanceProtocol, ...]
    boxes: DetectorBoxes | None = None
    keeps_boxed: bool = False
    seed: int = 0
    prompts_at_once: int = 32

    def check(self) -> None:
        """Refuses a segmenter that does not know some of the prompts.

        Raises:
            UserError: With the reason.
        """
        for one in self.protocols:
            one.check(self.segmenter)
        if self.boxes is not None:
            self.boxes.check(self.segmenter)

    def record(
        self,
        number: int,
        image: UInt8[np.ndarray, "h w 3"],
        about: InstanceImage,
        detections: Sequence[BoxDetection] = (),
    ) -> ImageRecord:
        """Asks about a photo; one with nothing to ask about is not embedded.

        Args:
            number: Of the photo in its set.
            image: RGB.
            about: Its annotations.
            detections: Of a detector.
        """
        instances, skipped = askable(sorted(about.instances, key=lambda one: one.id))
        marks = {one.name: ProtocolScores((), ()) for one in self.protocols}
        found: list[PredictedObject] = []
        truth = [one.mask for one in instances]
        grid = GridIous(np.zeros(0), np.zeros(0))
        if instances or detections:
            context = EvalContext(
                segmenter=self.segmenter,
                photo=self.segmenter.embed(image),
                key=str(about.id),
                seed=self.seed,
                at_once=self.prompts_at_once,
            )
            answers = {one.name: one.ask(context, instances) for one in self.protocols}
            marks = {name: _marks(some) for name, some in answers.items()}
            if "box" in answers and isinstance(context.photo, HasMaskGrid):
                grid = context.photo.grid_ious(truth)
            if self.keeps_boxed:
                found = [PredictedObject(ANY, one.score, one.mask) for one in answers["box"]]
            if self.boxes is not None:
                masks = self.boxes.ask(context, detections, about.image_hw, about.instances)
                found = [PredictedObject(one.category_id, one.score, one.mask) for one in masks]
        return ImageRecord(
            photo=number,
            instances=tuple(one.id for one in instances),
            areas=tuple(float(one.area) for one in instances),
            filled_box=tuple(filled_box_iou(truth).tolist()),
            filled_box_grid=tuple(grid.filled_box.tolist()),
            reachable=tuple(grid.reachable.tolist()),
            marks=marks,
            detections=tuple(found),
            crowds=skipped["crowd"],
            empty=skipped["zero_area"],
        )


def _marks(found: Sequence[InstanceResult]) -> ProtocolScores:
    return ProtocolScores(tuple(one.iou for one in found), tuple(one.best_iou for one in found))
