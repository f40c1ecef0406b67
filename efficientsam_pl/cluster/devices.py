"""Where a command computes."""

from typing import Literal

import torch

from efficientsam_pl.errors import UserError

Accelerator = Literal["auto", "cpu", "gpu"]


def chosen_device(
    accelerator: Accelerator, key: str = "accelerator", local_rank: int = 0
) -> torch.device:
    """The processor, or a GPU.

    Args:
        accelerator: What is asked for; `auto` is a GPU where there is one.
        key: How the user says so.
        local_rank: Which of this machine's processes this is; each takes its own GPU.

    Raises:
        UserError: A GPU was asked for and there is none.
    """
    there = torch.cuda.is_available()
    if accelerator == "gpu" and not there:
        raise UserError(f"{key}=gpu, but no GPU can be seen from here")
    if accelerator == "cpu" or not there:
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())
