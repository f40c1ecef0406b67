"""One training step of a stage's module, captured from its command."""

import contextlib
import dataclasses
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L  # noqa: N812
import torch
from torch import Tensor

from benchmarks.step_counts.counter import Label, OperationCounter
from benchmarks.step_counts.recipes import SAMI, StepRequest, run_command
from efficientsam_pl.recipes.promptable import prompt_loop
from efficientsam_pl.recipes.sami import module as sami

TEACHER_CHANNELS = 256


class Enough(Exception):  # noqa: N818
    """Ends a fit once its step is captured."""


@dataclass(frozen=True)
class CapturedStep:
    """Module and batch that a command gives to the trainer."""

    module: Any
    batch: Any


def captured_step(request: StepRequest) -> CapturedStep:
    """Run a command up to its fit, and take the module and the first batch."""
    taken: list[CapturedStep] = []

    def take(trainer: L.Trainer, fit: Any, module: Any, *_: Any, **given: Any) -> None:
        module._trainer = trainer
        taken.append(CapturedStep(module, next(iter(given["datamodule"].train_dataloader()))))
        raise Enough

    fit_through(request, take)
    return taken[0]


def fit_through(request: StepRequest, replacement: Callable[..., None]) -> None:
    """Run a command whose `Trainer.fit` is replaced, until `Enough` is raised.

    Args:
        request: The step.
        replacement: Called with the trainer, the method that it replaces, and fit's arguments.
    """
    fit = L.Trainer.fit

    def replaced(trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        replacement(trainer, fit, *args, **kwargs)

    with (
        tempfile.TemporaryDirectory() as home,
        mock.patch.object(L.Trainer, "fit", replaced),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(Enough),
    ):
        run_command(request, Path(home))


def labels_of(recipe: str, module: Any, inside: bool) -> Iterator[Label]:
    """Name the parts of a step.

    Args:
        recipe: The step's.
        module: The stage's LightningModule.
        inside: Whether to also name parts of compiled regions, whose graphs labels would break.
    """
    model = module.model
    if recipe == SAMI:
        yield Label(model.encoder, "forward", "sami_encoder")
        yield Label(model.decoder, "forward", "sami_decoder")
    else:
        yield Label(model, "encode", "encoder")
        yield Label(model, "_decode", "decoder_rest")
        yield Label(model.prompt_encoder, "forward", "prompt_encoder")
        yield Label(model.mask_decoder, "forward", "mask_decoder")
        yield Label(module.prompt_loop.prompt_sampler, "sample", "prompt_sampler")
        yield Label(module.prompt_loop.prompt_sampler, "targets", "prompt_sampler")
    yield Label(model.pixel_norm, "forward", "pixel_norm")
    if inside and recipe == SAMI:
        yield Label(sami, "feature_losses", "loss")
    elif inside:
        yield Label(model.mask_decoder.transformer, "forward", "mask_decoder.two_way")
        yield Label(model.mask_decoder, "_mask_logits", "mask_decoder.upscaling")
        yield Label(prompt_loop, "segmentation_losses", "loss")


def region_labels(module: Any) -> Iterator[Label]:
    """Name a module's regions; labels inside of them would break their graphs."""
    for region in module.regions():
        owner = type(region.owner).__name__
        yield Label(region.owner, region.method, f"{owner}.{region.method}")


def use_stored_features(module: Any, images: int) -> None:
    """Let pretraining read its target from memory, as from a feature store."""
    tokens = module.model.config.student.grid() ** 2
    stored = torch.zeros(images, tokens, TEACHER_CHANNELS, dtype=torch.half)
    module.target = lambda _: stored


def count_step(module: Any, batch: Any, counter: OperationCounter) -> None:
    """Count forward, backward, clipping and the optimizer's second step."""
    import torch.nn.utils.clip_grad as clip

    module.log = module.log_dict = _ignored
    on_gpu = mock.patch.object(clip, "_has_foreach_support", return_value=True)
    with on_gpu, counter:
        with torch.autocast("cpu", torch.bfloat16):
            loss = module.training_step(batch, 0)["loss"]
        loss.backward()
        optimizer = module.configure_optimizers()["optimizer"]
        before = counter.enter("clip")
        module.configure_gradient_clipping(optimizer, None, None)
        counter.enter("optimizer")
        with counter.paused():
            optimizer.step()  # initializes the moments
        optimizer.step()
        optimizer.zero_grad()
        counter.enter(before)


def without_data(record: Any) -> Any:
    """Copy a batch with zeros in its tensors, as fake tensors if that mode is active."""
    if isinstance(record, Tensor):
        return torch.zeros(record.shape, dtype=record.dtype)
    changed = {
        field.name: without_data(getattr(record, field.name))
        for field in dataclasses.fields(record)
        if isinstance(getattr(record, field.name), Tensor)
    }
    return dataclasses.replace(record, **changed)


def _ignored(*_: Any, **__: Any) -> None: ...
