"""Pictures of what a segmenter answers about a few photos, at every validation."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch

from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.recipes.promptable.prompted_images import drawable, one_by_one, predict_all
from efficientsam_pl.structures import MaskBatch, PromptSampler
from efficientsam_pl.training.callbacks.image_logger import ImageLogger
from efficientsam_pl.training.parallelize import as_forward_of
from efficientsam_pl.visualization.masks import mask_sheet


class MaskVisualizer(L.Callback):
    """Writes `pictures/step-N.png` before the first step and at every validation.

    The task gives `validated()`, a segmenter. Every rank asks it the same, since under FSDP2 a
    rank that does not would be waited for. Photos go through it one by one, with those masks only
    that are drawn: the largest that hardly overlap.

    What is drawn lies in the model's frame, without its padding: under the resize rule `squash` a
    photo is as square as the model sees it. IoU is at the losses' resolution.
    """

    def __init__(
        self,
        folder: Path,
        photos: Callable[[], MaskBatch],
        kinds: Mapping[str, PromptSampler],
        paused: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Pictures of one run.

        Args:
            folder: Of the run.
            photos: Reads the same few photos on every rank; called once, at the first picture.
            kinds: How each photo is asked, by what stands in the title.
            aside: What the work is done in, such as a clock that stands still.
        """
        self._showcase = ImageLogger(folder / "pictures", "pictures/masks")
        self._read, self._kinds = photos, kinds
        self._aside = paused
        self._images: list[MaskBatch] | None = None
        self._drawn_step: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Draws what the run begins with; a resumed run has that already."""
        if trainer.global_step == 0:
            self._draw_once(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Draws, once a step."""
        if not trainer.sanity_checking:
            self._draw_once(trainer, pl_module)

    def _draw_once(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.global_step != self._drawn_step:
            self._drawn_step = trainer.global_step
            with self._aside():
                self._draw(trainer, pl_module.eval_model())

    @torch.no_grad()  # FSDP2 cannot use in training what was gathered in inference mode
    def _draw(self, trainer: L.Trainer, model: Segmenter) -> None:
        if self._images is None:
            self._images = list(one_by_one(self._read()))
        training = model.training
        model.eval()
        answers, predict = [], as_forward_of(model, predict_all)
        for photo in self._images:
            here = photo.to(trainer.strategy.root_device)
            with trainer.precision_plugin.forward_context():
                asked = predict(model, self._kinds, here)
            if trainer.is_global_zero:
                answers += [drawable(here, kind, one) for kind, one in asked.items()]
        model.train(training)
        if answers:
            self._showcase.log(trainer, mask_sheet(answers), trainer.global_step)
