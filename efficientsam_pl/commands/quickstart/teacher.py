"""The quickstart with a released teacher: which SAM a file is, and how long it will take."""

import time

import torch

from efficientsam_pl.models.config import NAMED, EncoderConfig
from efficientsam_pl.models.teacher import FrozenTeacher
from efficientsam_pl.models.weights import WeightsError, read_weights
from efficientsam_pl.recipes.sami.config import PretrainConfig

_BASELINE_AND_VALIDATION = 12  # forwards a photo outside of training, about


def teacher_encoder(weights: str) -> EncoderConfig:
    """The shape of the SAM encoder in a released file, told by its width.

    Raises:
        WeightsError: No released SAM.
    """
    state = read_weights(weights).state
    position = state.get("image_encoder.trunk.pos_embed")
    for name in ("sam_vit_b", "sam_vit_l", "sam_vit_h"):
        encoder = NAMED[name].encoder
        if position is not None and position.ndim == 4 and position.shape[-1] == encoder.width:
            return encoder
    raise WeightsError(f"--teacher: {weights} is no released SAM ViT-B, L or H")


@torch.inference_mode()
def announce_cost(config: PretrainConfig, photos: int) -> None:
    """Times one photo through the teacher and says what the whole stage will take."""
    teacher = FrozenTeacher(config.teacher, config.sami.student.grid())
    side = config.sami.student.image_size
    photo = torch.zeros(1, 3, side, side)
    teacher(photo)
    began = time.monotonic()
    teacher(photo)
    seconds = time.monotonic() - began
    forwards = config.trainer.max_steps * config.trainer.global_batch
    forwards += _BASELINE_AND_VALIDATION * photos
    print(
        f"The teacher takes {seconds:.2f} s a photo here: about {forwards * seconds / 60:.0f} "
        f"minutes for SAMI pretraining's {forwards} forwards. "
        f"pretrain.trainer.max_steps={config.trainer.max_steps} shortens it."
    )
