"""Visualize a segmenter's masks of a few images at every validation."""

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
    """Write `pictures/step-N.png` before the first step and at every validation.

    The task's `eval_model()` is the segmenter. Every rank runs the same predictions, since under
    FSDP2 the others would wait for a rank that does not. Images are predicted one by one, with
    the drawn masks only: the largest that hardly overlap.

    Images and masks are drawn as the model sees them, without padding: under the resize rule
    `squash` an image is square. IoU is computed at the resolution of the losses.
    """

    def __init__(
        self,
        folder: Path,
        photos: Callable[[], MaskBatch],
        kinds: Mapping[str, PromptSampler],
        paused: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Create the visualizer of one run.

        Args:
            folder: Folder of the run.
            photos: Reads the same few images on every rank; called once, on first use.
            kinds: Prompt samplers by the protocol's title.
            paused: Context in which visualizations are made, such as a paused clock.
        """
        self._image_logger = ImageLogger(folder / "pictures", "pictures/masks")
        self._read, self._kinds = photos, kinds
        self._paused = paused
        self._images: list[MaskBatch] | None = None
        self._drawn_step: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Visualize the initial model, unless the run is resumed."""
        if trainer.global_step == 0:
            self._draw_once(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Visualize, at most once per step."""
        if not trainer.sanity_checking:
            self._draw_once(trainer, pl_module)

    def _draw_once(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.global_step != self._drawn_step:
            self._drawn_step = trainer.global_step
            with self._paused():
                self._draw(trainer, pl_module.eval_model())

    @torch.no_grad()  # FSDP2 cannot use in training what was gathered in inference mode
    def _draw(self, trainer: L.Trainer, model: Segmenter) -> None:
        if self._images is None:
            self._images = list(one_by_one(self._read()))
        training = model.training
        model.eval()
        drawn, predict = [], as_forward_of(model, predict_all)
        for image in self._images:
            moved = image.to(trainer.strategy.root_device)
            with trainer.precision_plugin.forward_context():
                rounds = predict(model, self._kinds, moved)
            if trainer.is_global_zero:
                drawn += [drawable(moved, kind, last) for kind, last in rounds.items()]
        model.train(training)
        if drawn:
            self._image_logger.log(trainer, mask_sheet(drawn), trainer.global_step)
