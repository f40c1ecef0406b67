"""Choose the device that a command runs on."""

from typing import Literal

import torch

from efficientsam_pl.errors import UserError

Accelerator = Literal["auto", "cpu", "gpu"]


def chosen_device(
    accelerator: Accelerator, key: str = "accelerator", local_rank: int = 0
) -> torch.device:
    """Choose the CPU or a GPU.

    Args:
        accelerator: The configured choice; `auto` is a GPU if there is one.
        key: The configuration key, for the error message.
        local_rank: Rank of this process on its node; each uses a different GPU.

    Raises:
        UserError: A GPU is configured, but there is none.
    """
    available = torch.cuda.is_available()
    if accelerator == "gpu" and not available:
        raise UserError(f"{key}=gpu, but no GPU is available")
    if accelerator == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())
