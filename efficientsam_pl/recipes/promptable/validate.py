"""Scores of the held-out images during training, with those of the start and of filled boxes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L  # noqa: N812
import torch
from rich.table import Table

from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.config import AP_NAMES, ValidationConfig
from efficientsam_pl.evaluation.evaluator import ImageEvaluator, validation_evaluator
from efficientsam_pl.evaluation.metrics.reachable import GridIouCache
from efficientsam_pl.evaluation.prompt_metrics import ImageScores, Scores
from efficientsam_pl.geometry import Resize
from efficientsam_pl.inference.evaluator_adapter import EvaluatorModel
from efficientsam_pl.models.config import PromptEncoderConfig
from efficientsam_pl.models.prompt_kinds import PromptNeeds, unmet_needs
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.plural import counted
from efficientsam_pl.structures import ScoringBatch
from efficientsam_pl.training.callbacks.corrupt_sample_log import CorruptSampleLog
from efficientsam_pl.training.callbacks.progress_bar import console_of
from efficientsam_pl.training.callbacks.watchdog import watched
from efficientsam_pl.training.datamodule import TrainingDataModule
from efficientsam_pl.training.parallelize import as_forward_of

_LOGGED = 20  # corrupt samples that a rank names in the log


class PromptValidation(L.Callback):
    """Score the held-out images before the first step and at every validation.

    Logs `heldout/ap` and its kin, `heldout/box_miou`, `heldout/click1_miou` and so on; a metric
    without a sample is nan. Prints them with those of the model at the start of training and the
    best of all validations, filled boxes, and the bounds of the model's mask grid. The evaluator is
    that of `evaluate`, which reproduces every score (docs/evaluation.md): images are encoded one by
    one, since a batch of another size rounds otherwise.

    The module has `eval_model()`, a segmenter. Every rank calls it equally often, since under FSDP2
    the others would wait for a rank that does not.
    """

    def __init__(self, config: ValidationConfig, seed: int) -> None:
        """Create the scorer of one run; `seed` seeds the clicks."""
        self._config, self._seed = config, seed
        self._corrupt_samples = CorruptSampleLog(_LOGGED)
        self._grid_values = GridIouCache()  # depend on no weights
        self.start: dict[str, float] | None = None
        self.latest: dict[str, float] = {}
        self.best: dict[str, float] = {}

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse a model that does not understand the prompts.

        Raises:
            UserError: With the reason.
        """
        check_understood(self._config, pl_module.eval_model().config.prompts)
        self._scores = ImageScores(self._config)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Score the model at the start of training, unless a checkpoint holds its scores."""
        if self.start is not None or trainer.global_step > 0:
            return
        scores = self._measured(trainer, pl_module)
        if scores is None:
            return
        self.start = self.latest = named(scores)
        if trainer.logger is not None:
            trainer.logger.log_metrics(self.start, step=0)
        self._show(trainer, scores, self.start)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Score and log."""
        scores = self._measured(trainer, pl_module)
        if scores is None:
            return
        self.latest = named(scores)
        for name, value in self.latest.items():
            known = self.best.get(name, math.nan)
            self.best[name] = value if math.isnan(known) else max(known, value)
        pl_module.log_dict(self.latest, sync_dist=True)  # the same on all ranks already
        self._show(trainer, scores, self.latest)

    @property
    def state_key(self) -> str:
        """Name the state in checkpoints, whatever the class is called."""
        return "HeldoutScores"

    def state_dict(self) -> dict[str, Any]:
        """Return the scores of the start and the best ones."""
        return {"start": self.start, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores of the start and the best ones."""
        self.start, self.best = state_dict["start"], state_dict["best"]

    @torch.no_grad()  # FSDP2 cannot use in training what was gathered in inference mode
    def _measured(self, trainer: L.Trainer, pl_module: Any) -> Scores | None:
        """Score on all ranks; None where no images are held out."""
        data: TrainingDataModule = trainer.datamodule  # type: ignore[attr-defined]
        batches = data.scoring_batches(self._config.photos)
        if not len(batches):
            return None
        device = trainer.strategy.root_device
        segmenter: Segmenter = pl_module.eval_model()
        training = segmenter.training
        bf16 = trainer.precision == "bf16-mixed"
        model = EvaluatorModel(
            segmenter, precision="bf16" if bf16 else "fp32", grid_values=self._grid_values
        )
        evaluator = validation_evaluator(model, self._config, self._seed)
        self._scores.to(device).reset()
        add = as_forward_of(segmenter, self._add)
        for batch in watched(batches, trainer):
            add(model, evaluator, batch.to(device, non_blocking=True))
            self._scores.add_damaged(len(batch.corrupt))
            self._corrupt_samples.warn(batch.corrupt)
        segmenter.train(training)
        return self._scores.compute()

    def _add(self, model: EvaluatorModel, evaluator: ImageEvaluator, batch: ScoringBatch) -> None:
        """Score a batch, image by image; padding and corrupt samples are encoded and not scored."""
        segmenter, side = model.model, batch.image.shape[-1]
        for place, annotations in enumerate(batch.annotations):
            image = slice(place, place + 1)
            with model.autocast():
                features = segmenter.encode(batch.image[image], batch.content_hw[image])
            if annotations is not None:
                resize = Resize.fit(annotations.image_hw, side, segmenter.config.resize)
                embedded = model.embedded(features, resize)
                record = evaluator.evaluate_embedded(batch.number[place], embedded, annotations)
                self._scores.add(record, annotations)

    def _show(self, trainer: L.Trainer, scores: Scores, now: dict[str, float]) -> None:
        if trainer.is_global_zero:
            table = _table(trainer.global_step, scores, [self.start or {}, now, self.best])
            console_of(trainer).print(table)


def check_understood(config: ValidationConfig, prompts: PromptEncoderConfig) -> None:
    """Check that a model understands the prompts of a validation.

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
    """Name the scores as they are logged."""
    values = {f"heldout/{name}": getattr(scores.ap, name) for name in AP_NAMES}
    values = {name: math.nan if value < 0 else value for name, value in values.items()}
    for name in ("box", "filled_box", "filled_box_grid", "reachable"):
        values[f"heldout/{name}_miou"] = getattr(scores, name)
    values |= {f"heldout/click{count}_miou": value for count, value in scores.clicks.items()}
    values |= {f"heldout/box_miou_{size}": part.box for size, part in scores.by_size.items()}
    counts = (scores.photos, scores.masks, scores.damaged)
    names = ("scored_photos", "scored_masks", "damaged_photos")
    return values | {f"heldout/{name}": float(n) for name, n in zip(names, counts, strict=True)}


def _table(step: int, scores: Scores, times: Sequence[Mapping[str, float]]) -> Table:
    """Tabulate the scores with their bounds, 80 columns wide at most.

    Args:
        step: Of the training.
        scores: The latest ones.
        times: Logged scores of the start, the latest and the best so far; a run that an older
            program started lacks some.
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
        values = (logged.get(f"heldout/{name}") for logged in times)
        table.add_row(title, *map(_format, (*bounds, *values)))

    row("box mIoU", "box_miou", scores.filled_box, scores.filled_box_grid, scores.reachable)
    for n in scores.clicks:
        title = f"{n} click{'s' if n > 1 else ''} mIoU"
        row(title, f"click{n}_miou", None, None, scores.reachable)
    row("AP", "ap", None, None, None)
    row("AP50", "ap50", None, None, None)
    table.add_section()
    for size, part in scores.by_size.items():
        title = f"box, {size} ({part.masks})"
        row(title, f"box_miou_{size}", part.filled_box, part.filled_box_grid, part.reachable)
    return table


def _format(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"
