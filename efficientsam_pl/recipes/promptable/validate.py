"""What the held-out photos score as training goes on, beside the start and the filled box."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import lightning as L  # noqa: N812
import torch
from rich.table import Table

from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.config import AP_NAMES, ValidationConfig
from efficientsam_pl.evaluation.prompt_metrics import ImageScores, Scores
from efficientsam_pl.evaluation.training_protocols import PromptedImage, Questions
from efficientsam_pl.geometry import Resize
from efficientsam_pl.models.config import PromptEncoderConfig
from efficientsam_pl.models.prompt_kinds import PromptNeeds, unmet_needs
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.plural import counted
from efficientsam_pl.prompts.clicks import sample_point_from_errors
from efficientsam_pl.structures import ScoringBatch
from efficientsam_pl.training.callbacks.corrupt_sample_log import CorruptSampleLog
from efficientsam_pl.training.callbacks.progress_bar import console_of
from efficientsam_pl.training.callbacks.watchdog import watched
from efficientsam_pl.training.datamodule import TrainingDataModule
from efficientsam_pl.training.parallelize import as_forward_of

_TOLD = 20  # damaged photos that a rank names in the log


class PromptValidation(L.Callback):
    """Scores the held-out photos before the first step and at every validation.

    Logs `heldout/ap` and its kin, `heldout/box_miou`, `heldout/click1_miou` and so on; what there
    is nothing of is nan. Prints them beside those of the model that training began with and the
    best of all validations, filled boxes, and what the model's mask grid allows.

    The task gives `validated()`, a segmenter, which every rank calls equally often, since under
    FSDP2 a rank that does not would be waited for.
    """

    def __init__(self, config: ValidationConfig, seed: int) -> None:
        """Scores of one run; `seed` is that of the clicks."""
        self._config, self._seed = config, seed
        self._corrupt_samples = CorruptSampleLog(_TOLD)
        self.start: dict[str, float] | None = None
        self.best: dict[str, float] = {}

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Makes sure that the model understands what it will be asked.

        Raises:
            UserError: It does not.
        """
        config, shape = self._config, pl_module.eval_model().config
        check_understood(config, shape.prompts)
        correct = None
        if config.later_clicks == "corrections":
            correct = partial(sample_point_from_errors, side=shape.encoder.image_size)
        self._scores = ImageScores(
            Questions(config.clicks, config.prompts_at_once, self._seed, correct)
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Scores the model that training begins with, unless a checkpoint has told its scores."""
        if self.start is not None or trainer.global_step > 0:
            return
        scores = self._measured(trainer, pl_module)
        if scores is None:
            return
        self.start = named(scores)
        if trainer.logger is not None:
            trainer.logger.log_metrics(self.start, step=0)
        self._show(trainer, scores, self.start)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Scores and logs."""
        scores = self._measured(trainer, pl_module)
        if scores is None:
            return
        now = named(scores)
        for name, value in now.items():
            known = self.best.get(name, math.nan)
            self.best[name] = value if math.isnan(known) else max(known, value)
        pl_module.log_dict(now, sync_dist=True)  # the same on all ranks already
        self._show(trainer, scores, now)

    @property
    def state_key(self) -> str:
        """Name the state in checkpoints, whatever the class is called."""
        return "HeldoutScores"

    def state_dict(self) -> dict[str, Any]:
        """The start's scores and the best ones, for the checkpoint."""
        return {"start": self.start, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on comparing with a checkpoint's scores."""
        self.start, self.best = state_dict["start"], state_dict["best"]

    @torch.no_grad()  # FSDP2 cannot use in training what was gathered in inference mode
    def _measured(self, trainer: L.Trainer, pl_module: Any) -> Scores | None:
        """Scores of all ranks; None where no photos are held out."""
        data: TrainingDataModule = trainer.datamodule  # type: ignore[attr-defined]
        batches = data.scoring_batches(self._config.photos)
        if not len(batches):
            return None
        device = trainer.strategy.root_device
        model: Segmenter = pl_module.eval_model()
        training = model.training
        model.eval()
        self._scores.to(device).reset()
        score = as_forward_of(model, self._score)
        for batch in watched(batches, trainer):
            with trainer.precision_plugin.forward_context():
                score(model, batch.to(device, non_blocking=True))
            self._scores.add_damaged(len(batch.corrupt))
            self._corrupt_samples.warn(batch.corrupt)
        model.train(training)
        return self._scores.compute()

    def _score(self, model: Segmenter, batch: ScoringBatch) -> None:
        side, rule = batch.image.shape[-1], model.config.resize
        features = model.encode(batch.image, batch.content_hw)
        for number, key in enumerate(batch.key):
            if batch.valid[number]:
                photo = PromptedImage(
                    key,
                    batch.truth[number],
                    Resize.fit(batch.image_hw[number], side, rule),
                    partial(model.decode, features[number : number + 1]),
                    features.device,
                )
                self._scores.add(photo)

    def _show(self, trainer: L.Trainer, scores: Scores, now: dict[str, float]) -> None:
        if trainer.is_global_zero:
            table = _table(trainer.global_step, scores, [self.start or {}, now, self.best])
            console_of(trainer).print(table)


def check_understood(config: ValidationConfig, prompts: PromptEncoderConfig) -> None:
    """Whether a model understands the prompts of a validation.

    Raises:
        UserError: It takes fewer points, no negative clicks or no mask prompts.
    """
    most = max(config.clicks)
    corrects = config.later_clicks == "corrections" and most > 1
    kinds = PromptNeeds(negative_clicks=corrects, mask_prompts=corrects)
    if unmet := unmet_needs(prompts, kinds):
        raise UserError(
            f"validation.later_clicks=corrections {unmet}; validation.later_clicks=random needs "
            "neither"
        )
    if unmet := unmet_needs(prompts, PromptNeeds(points=most)):
        raise UserError(f"validation.clicks={list(config.clicks)} {unmet}")


def named(scores: Scores) -> dict[str, float]:
    """Scores by the names they are logged under."""
    found = {f"heldout/{name}": getattr(scores.ap, name) for name in AP_NAMES}
    found = {name: math.nan if value < 0 else value for name, value in found.items()}
    for name in ("box", "filled_box", "filled_box_grid", "reachable"):
        found[f"heldout/{name}_miou"] = getattr(scores, name)
    found |= {f"heldout/click{count}_miou": value for count, value in scores.clicks.items()}
    found |= {f"heldout/box_miou_{size}": own.box for size, own in scores.by_size.items()}
    counts = (scores.photos, scores.masks, scores.damaged)
    told = ("scored_photos", "scored_masks", "damaged_photos")
    return found | {f"heldout/{name}": float(n) for name, n in zip(told, counts, strict=True)}


def _table(step: int, scores: Scores, times: Sequence[Mapping[str, float]]) -> Table:
    """Scores of now beside what they are measured by, 80 columns wide at most.

    Args:
        step: Of the training.
        scores: Of now.
        times: Logged scores of the start, of now and the best so far; a run that was begun by an
            older program lacks some.
    """
    table = Table(
        title=f"Step {step}: {counted(scores.photos, 'held-out photo')}, "
        f"{counted(scores.masks, 'mask')}, {scores.damaged} damaged",
        caption="Reachable: the true masks, drawn into the model's mask grid and enlarged. "
        "Small, medium, large: below 32², below 96² pixels, larger.",
    )
    for column in ("", "filled\nbox", "box via\ngrid", "reach-\nable", "start", "now", "best"):
        table.add_column(column, justify="right" if column else "left")

    def row(title: str, name: str, *bounds: float | None) -> None:
        own = (one.get(f"heldout/{name}") for one in times)
        table.add_row(title, *map(_shown, (*bounds, *own)))

    row("box mIoU", "box_miou", scores.filled_box, scores.filled_box_grid, scores.reachable)
    for n in scores.clicks:
        title = f"{n} click{'s' if n > 1 else ''} mIoU"
        row(title, f"click{n}_miou", None, None, scores.reachable)
    row("AP", "ap", None, None, None)
    row("AP50", "ap50", None, None, None)
    table.add_section()
    for size, own in scores.by_size.items():
        title = f"box, {size} ({own.masks})"
        row(title, f"box_miou_{size}", own.filled_box, own.filled_box_grid, own.reachable)
    return table


def _shown(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"
