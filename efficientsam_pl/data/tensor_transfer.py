"""Send small tensors of a batch from data workers within the message instead of beside it.

torch shares a tensor as a file descriptor, for which the receiver opens a connection, proves to
know a key and closes it: a third of a millisecond of the training process for each tensor,
measured, be it a single number. A batch has several small tensors beside its images.
"""

from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

_LARGEST_COPIED = 64 * 1024  # bytes: copied through a pipe in less time than a connection takes


def send_small_tensors_by_value() -> None:
    """Let this process pickle small CPU tensors with their content, for other processes."""
    ForkingPickler.register(Tensor, _reduce)


def _reduce(tensor: Tensor) -> tuple[Any, ...]:
    by_value = (
        tensor.device.type == "cpu"
        and tensor.nbytes <= _LARGEST_COPIED
        and tensor.layout == torch.strided
        and tensor.is_contiguous()  # numpy would lose another order, on which sums depend
        and not tensor.requires_grad
        and tensor.dtype != torch.bfloat16  # numpy has none
    )
    if by_value:
        return torch.from_numpy, (tensor.numpy(),)
    return reduce_tensor(tensor)  # type: ignore[no-any-return]
