from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from efficientsam_pl.models.cast_weights import call_with_cast_weights
from efficientsam_pl.models.layers import Block


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        self.counts[func._schema.name.split("::")[1]] += 1
        return func(*args, **(kwargs or {}))


def results(block: nn.Module, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    block.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        output = call_with_cast_weights(block, x)
    output.float().square().sum().backward()
    return [output.detach(), *(p.grad for p in block.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_cast_together_give_the_numbers_of_weights_cast_one_by_one(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    block, x = Block(16, 2, nn.LayerNorm), torch.randn(2, 5, 16)
    one_by_one = results(block, x, dtype)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with Operations() as operations:
        together = results(block, x, dtype)
    # all weights at once, all gradients at once; nothing in float32
    assert operations.counts["_foreach_copy_"] == (2 if dtype == torch.bfloat16 else 0)
    assert len(together) == len(one_by_one) == 1 + len(list(block.parameters()))
    for actual, expected in zip(together, one_by_one, strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


def test_code_that_is_not_compiled_keeps_autocasts_own_casts() -> None:
    with Operations() as operations:
        results(Block(16, 2, nn.LayerNorm), torch.randn(2, 5, 16), torch.bfloat16)
    assert operations.counts["_foreach_copy_"] == 0


def test_module_without_layers_to_cast_for_is_called_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    embedding, numbers = nn.Embedding(3, 4), torch.tensor([0, 2])
    with torch.autocast("cpu", torch.bfloat16):
        output = call_with_cast_weights(embedding, numbers)
    assert torch.equal(output, embedding.weight[[0, 2]])
