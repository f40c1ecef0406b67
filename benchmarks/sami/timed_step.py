"""A pretraining step to be timed: random weights, fixed images."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from efficientsam_pl.losses.config import FeatureLossConfig
from efficientsam_pl.losses.feature_loss import feature_losses
from efficientsam_pl.models.config import EncoderConfig, SamiConfig
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.optim.adamw import build_optimizer
from efficientsam_pl.optim.config import sami_optim
from efficientsam_pl.training.compilation import apply_compile

CHANNELS = 256  # of the target, SAM's neck
STUDENTS = {
    "S": SamiConfig(student=EncoderConfig(width=384, heads=6, image_size=224)),
    "B": SamiConfig(student=EncoderConfig(width=768, heads=12, image_size=224)),
}


class StudentStep:
    """Forward, loss, backward and AdamW's step of one student on one batch."""

    def __init__(
        self, config: SamiConfig, batch: int, device: Literal["cpu", "cuda"] = "cpu"
    ) -> None:
        """Set up a step: in float32 on the CPU, in bf16 with compiled blocks on a GPU."""
        torch.manual_seed(0)
        student = config.student
        self._image = torch.randint(
            0, 256, (batch, 3, student.image_size, student.image_size), dtype=torch.uint8
        ).to(device)
        self._draw_key = torch.arange(batch, device=device)
        self._valid = torch.ones(batch, dtype=torch.bool, device=device)
        self.stored = torch.randn(batch, student.grid() ** 2, CHANNELS).to(device)
        self.model = Sami(config, CHANNELS).to(device)
        self._optimizer = build_optimizer(self.model, sami_optim())
        self._precision: AbstractContextManager[object] = nullcontext()
        if device == "cuda":
            self.stored = self.stored.half()  # as stored
            self._precision = torch.autocast("cuda", torch.bfloat16)
            apply_compile(self.model)

    def with_stored(self) -> None:
        """Run a step with stored features."""
        self._learn(self.stored)

    def with_online(self, teacher: Callable[[Tensor], Tensor]) -> None:
        """Run a step with the teacher's features of the same images."""
        self._learn(teacher(self._image))

    def _learn(self, target: Tensor) -> None:
        with self._precision:
            predicted, split = self.model(self._image, self._draw_key)
        losses = feature_losses(predicted, target, split.masked, self._valid, FeatureLossConfig())
        losses.total.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


class MaeStep:
    """Forward, loss, backward and AdamW's step of MAE's model."""

    def __init__(self, model: nn.Module, image_size: int, batch: int) -> None:
        torch.manual_seed(0)
        self._pixels = torch.randn(batch, 3, image_size, image_size)
        self._model = model
        self._optimizer: AdamW = build_optimizer(model, sami_optim())

    def __call__(self) -> None:
        """Run one step."""
        loss: Tensor = self._model(self._pixels)[0]
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
