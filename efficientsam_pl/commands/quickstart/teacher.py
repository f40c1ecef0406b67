"""Identify the SAM of a released file for the quickstart, and estimate how long it will take."""

import time

import torch

from efficientsam_pl.models.config import NAMED, EncoderConfig
from efficientsam_pl.models.teacher import FrozenTeacher
from efficientsam_pl.models.weights import read_weights
from efficientsam_pl.models.weights_source import WeightsError
from efficientsam_pl.recipes.sami.config import PretrainConfig

_BASELINE_AND_VALIDATION = 12  # approximate forwards per image outside of training


def teacher_encoder(weights: str) -> EncoderConfig:
    """Identify the SAM encoder of a released file by its width.

    Raises:
        WeightsError: Not a released SAM.
    """
    state = read_weights(weights).state
    position = state.get("image_encoder.trunk.pos_embed")
    for name in ("sam_vit_b", "sam_vit_l", "sam_vit_h"):
        encoder = NAMED[name].encoder
        if position is not None and position.ndim == 4 and position.shape[-1] == encoder.width:
            return encoder
    raise WeightsError(f"--teacher: {weights} is not a released SAM ViT-B, L or H")


@torch.inference_mode()
def announce_cost(config: PretrainConfig, images: int) -> None:
    """Time a forward pass of the teacher and print an estimate for the whole stage."""
    teacher = FrozenTeacher(config.teacher, config.sami.student.grid())
    side = config.sami.student.image_size
    image = torch.zeros(1, 3, side, side)
    teacher(image)
    start = time.monotonic()
    teacher(image)
    seconds = time.monotonic() - start
    forwards = config.trainer.max_steps * config.trainer.global_batch
    forwards += _BASELINE_AND_VALIDATION * images
    print(
        f"The teacher takes {seconds:.2f} s per image here: about {forwards * seconds / 60:.0f} "
        f"minutes for SAMI pretraining's {forwards} forwards. "
        f"pretrain.trainer.max_steps={config.trainer.max_steps} shortens it."
    )
