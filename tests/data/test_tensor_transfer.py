"""Tensors of a data worker's batch arrive whole; small ones need no file descriptor."""

from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from efficientsam_pl.data import tensor_transfer
from efficientsam_pl.data.worker_init import make_worker_init_fn

BATCH = {
    "valid": torch.tensor([[True, False]]),
    "key": torch.tensor([2**62 + 1]),
    "number": torch.tensor(0.1),
    "empty": torch.zeros(0, 4),
    "transposed": torch.arange(6).reshape(2, 3).T,
    "channels last": torch.arange(96).reshape(2, 4, 4, 3).permute(0, 3, 1, 2),
    "brain": torch.tensor([0.5], dtype=torch.bfloat16),
    "image": torch.arange(3 * 256 * 256).remainder(251).to(torch.uint8).reshape(3, 256, 256),
}


class Batches(Dataset[dict[str, Tensor]]):
    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in BATCH.items()}

    def __len__(self) -> int:
        return 3


def test_batches_of_a_worker_are_those_it_made() -> None:
    loader = DataLoader(
        Batches(), batch_size=None, num_workers=1, worker_init_fn=make_worker_init_fn()
    )
    arrived = list(loader)
    assert len(arrived) == 3
    for batch in arrived:
        assert batch.keys() == BATCH.keys()
        for name, tensor in BATCH.items():
            assert batch[name].dtype == tensor.dtype
            assert torch.equal(batch[name], tensor)
            assert batch[name].stride() == tensor.stride()
            batch[name].zero_()  # may be written to


@pytest.mark.parametrize(("name", "by_value"), [("valid", True), ("image", False)])
def test_only_large_tensors_are_shared(
    monkeypatch: pytest.MonkeyPatch, name: str, by_value: bool
) -> None:
    shared: list[Tensor] = []

    def share(tensor: Tensor) -> Any:
        shared.append(tensor)
        return torch.zeros, (1,)

    monkeypatch.setattr(tensor_transfer, "reduce_tensor", share)
    registered = ForkingPickler._extra_reducers.copy()
    monkeypatch.setattr(ForkingPickler, "_extra_reducers", registered)
    tensor_transfer.send_small_tensors_by_value()
    ForkingPickler.dumps(BATCH[name])
    assert (len(shared) == 0) is by_value
