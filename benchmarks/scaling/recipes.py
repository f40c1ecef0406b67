"""FLOPs per image and weight shapes of the shipped recipes, and the teacher's operations.

All are counted by torch on meta or fake tensors, as in `training/flops.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.finetune.timed_step import boxes_batch
from benchmarks.sami.timed_step import CHANNELS
from benchmarks.scaling.timed_run import weights_of
from benchmarks.scaling.traffic import Weights
from efficientsam_pl.config import load as configs
from efficientsam_pl.models.config import TeacherConfig
from efficientsam_pl.models.registry import segmenter_config
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.models.teacher import FrozenTeacher
from efficientsam_pl.prompts.samplers import build_prompt_sampler
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.promptable.prompt_loop import PromptLoop
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.training.flops import step_flops


@dataclass(frozen=True)
class Learner:
    """The trained model of a recipe."""

    flop: int  # forward and backward pass of an image
    weights: Weights
    global_batch: int
    micro_batch: int
    steps: int


@dataclass(frozen=True)
class Teaching:
    """The teacher's forward pass."""

    flop: int  # per image
    operations: int
    numbers: int  # parameters


class Operations(TorchDispatchMode):
    """Counts operations that write a tensor within the context; views are free."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count and call the operator."""
        self.count += not func.is_view and func.namespace == "aten"
        return func(*args, **(kwargs or {}))


@cache
def pretraining(name: str) -> Learner:
    """Count for a file in configs/pretrain."""
    config = configs.load(PretrainConfig, [f"pretrain/{name}"], ["data.train=none"])
    side, trainer = config.sami.student.image_size, config.trainer

    def built() -> Sami:
        return Sami(config.sami, CHANNELS)

    def learn(student: Sami, image: Tensor) -> Tensor:
        predicted: Tensor = student(image, torch.zeros(len(image), dtype=torch.int64))[0]
        return predicted

    return Learner(
        flop=step_flops(built, learn, side),
        weights=_weights(built),
        global_batch=trainer.global_batch,
        micro_batch=trainer.micro_batch,
        steps=trainer.max_steps,
    )


@cache
def finetuning(name: str) -> Learner:
    """Count for a file in configs/finetune."""
    config = configs.load(FinetuneConfig, [f"finetune/{name}"], ["data.train=none"])
    shape, trainer = segmenter_config(config.model.name), config.trainer
    side, masks = shape.encoder.image_size, config.masks
    prompt_loop = PromptLoop(
        build_prompt_sampler(config.prompts, side), config.loss, masks.decoded_at_once
    )
    batch = boxes_batch(side, 1, masks.masks_per_image)
    batch = replace(batch, clicks_px=torch.zeros(1, masks.masks_per_image, masks.clicks, 2))

    def built() -> Segmenter:
        return Segmenter(shape)

    def learn(model: Segmenter, image: Tensor) -> Tensor:
        return prompt_loop.loss_for_flops(model, model.encode(image), batch)

    return Learner(
        flop=step_flops(built, learn, side),
        weights=_weights(built),
        global_batch=trainer.global_batch,
        micro_batch=trainer.micro_batch,
        steps=trainer.max_steps,
    )


@cache
def teaching(image_size: int) -> Teaching:
    """Count for SAM ViT-H's encoder on images of a given side, for students of 224."""
    config = TeacherConfig(image_size=image_size)
    student = PretrainConfig().sami.student

    def built() -> FrozenTeacher:
        return FrozenTeacher(config, student.grid())

    def nothing() -> nn.Module:
        return nn.Linear(1, 1)

    def learn_nothing(model: nn.Module, image: Tensor) -> Tensor:
        loss: Tensor = model(image.float().mean().view(1, 1))
        return loss

    side = student.image_size
    alone = step_flops(nothing, learn_nothing, side)
    with torch.device("meta"):
        numbers = sum(parameter.numel() for parameter in built().parameters())
    return Teaching(
        flop=step_flops(nothing, learn_nothing, side, built) - alone,
        operations=operations(built, lambda teacher, image: teacher(image), side),
        numbers=numbers,
    )


def operations(
    build: Callable[[], Any], run: Callable[[Any, Tensor], Tensor], image_size: int
) -> int:
    """Count operations of a forward pass, each a kernel if not compiled."""
    with torch.device("meta"):
        model = build()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model.to_empty(device="cpu")
        image = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
        with Operations() as counter:
            run(model, image)
    counted: int = counter.count
    return counted


def _weights(build: Callable[[], Any]) -> Weights:
    with torch.device("meta"):
        return weights_of(build())
