"""Chunks against plain autograd of their sum."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from efficientsam_pl.losses.chunked import chunked_loss


class Head(nn.Module):
    """Called several times; its first layer twice a chunk, its last layer never."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.once, self.never = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 6)

    def forward(self, features: Tensor, number: int) -> Tensor:
        """Two values: the loss, and a logged value."""
        hidden = F.gelu(self.twice(F.gelu(self.twice(features + number))))
        output = self.once(hidden)
        return torch.stack([output.square().mean(), output.mean()]).float()


@pytest.fixture
def head() -> Head:
    torch.manual_seed(0)
    return Head()


def chunks_of(head: Head, count: int = 5) -> Callable[[Tensor], Iterator[Tensor]]:
    return lambda features: (head(features, number) for number in range(count))


def plain_sum(head: Head, features: Tensor, count: int = 5) -> Tensor:
    return torch.stack([head(features, number) for number in range(count)]).sum(0)


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    gradient_of = {name: p.grad for name, p in module.named_parameters()}
    module.zero_grad(set_to_none=True)
    return gradient_of


def assert_equal_gradients(
    chunked: dict[str, Tensor | None], plain: dict[str, Tensor | None]
) -> None:
    """Equal, but unused parameters may have zeros."""
    assert chunked.keys() == plain.keys()
    for name, gradient in chunked.items():
        expected = plain[name]
        if expected is None:
            assert gradient is None or not gradient.any()
        else:
            torch.testing.assert_close(gradient, expected, msg=name)


@pytest.mark.parametrize("count", [1, 5])
def test_value_and_gradients_are_the_sums(head: Head, count: int) -> None:
    features = torch.randn(4, 6, requires_grad=True)
    expected = plain_sum(head, features, count)
    expected[0].backward()
    expected_gradients, of_features = gradients(head), features.grad
    features.grad = None
    chunked = chunked_loss(chunks_of(head, count), features, list(head.parameters()))
    torch.testing.assert_close(chunked, expected)
    chunked[0].backward()
    assert_equal_gradients(gradients(head), expected_gradients)
    torch.testing.assert_close(features.grad, of_features)


def test_a_parameter_that_no_chunk_uses_has_zeros(head: Head) -> None:
    """Ranks must agree on what has a gradient, and another rank may have used it."""
    features = torch.randn(4, 6)
    chunked_loss(chunks_of(head), features, list(head.parameters()))[0].backward()
    assert head.never.weight.grad is not None
    assert not head.never.weight.grad.any()


def test_it_is_part_of_a_larger_graph(head: Head) -> None:
    """Features come out of a layer, the sum is scaled and added to another loss of both."""
    below = nn.Linear(6, 6)
    data = torch.randn(4, 6)

    def loss(summed: Callable[[Tensor], Tensor]) -> Tensor:
        features = below(data)
        beside: Tensor = features.sum() + head.once.weight.square().sum()
        return 0.25 * summed(features)[0] / 3 + beside

    whole = nn.ModuleList([below, head])
    expected = loss(lambda features: plain_sum(head, features))
    expected.backward()
    expected_gradients = gradients(whole)
    chunked = loss(lambda f: chunked_loss(chunks_of(head), f, list(head.parameters())))
    torch.testing.assert_close(chunked, expected)
    chunked.backward()
    assert_equal_gradients(gradients(whole), expected_gradients)


def test_gradients_add_to_those_that_are_there(head: Head) -> None:
    features = torch.randn(4, 6)
    plain_sum(head, features)[0].backward()
    expected_gradients = gradients(head)
    for _ in range(2):
        chunked_loss(chunks_of(head), features, list(head.parameters()))[0].backward()
    doubled = {name: None if g is None else 2 * g for name, g in expected_gradients.items()}
    assert_equal_gradients(gradients(head), doubled)


def test_logged_values_have_no_gradient(head: Head) -> None:
    chunked_loss(chunks_of(head), torch.randn(4, 6), list(head.parameters()))[1].backward()
    assert all(g is None or not g.any() for g in gradients(head).values())


def test_frozen_features_and_parameters_have_no_gradient(head: Head) -> None:
    head.twice.requires_grad_(False)
    features = torch.randn(4, 6)
    plain_sum(head, features)[0].backward()
    expected_gradients = gradients(head)
    chunked_loss(chunks_of(head), features, list(head.parameters()))[0].backward()
    assert features.grad is None
    chunked = gradients(head)
    assert chunked["twice.weight"] is None
    assert_equal_gradients(chunked, expected_gradients)


def test_features_have_a_gradient_though_all_parameters_are_frozen(head: Head) -> None:
    head.requires_grad_(False)
    features = torch.randn(4, 6, requires_grad=True)
    expected_gradients = torch.autograd.grad(plain_sum(head, features)[0], features)[0]
    chunked_loss(chunks_of(head), features, list(head.parameters()))[0].backward()
    torch.testing.assert_close(features.grad, expected_gradients)


@pytest.mark.parametrize("frozen", [False, True])
def test_without_gradients_only_the_values_are_summed(head: Head, frozen: bool) -> None:
    """In validation, and with everything frozen."""
    features = torch.randn(4, 6)
    expected = plain_sum(head, features).detach()
    if frozen:
        chunked = chunked_loss(chunks_of(head.requires_grad_(False)), features, [])
    else:
        with torch.no_grad():
            chunked = chunked_loss(chunks_of(head), features, list(head.parameters()))
    assert not chunked.requires_grad
    torch.testing.assert_close(chunked, expected)


def test_under_autocast_gradients_are_those_of_autocast(head: Head) -> None:
    below, data = nn.Linear(6, 6), torch.randn(4, 6)
    whole = nn.ModuleList([below, head])
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain_sum(head, below(data))
    expected[0].backward()
    expected_gradients = gradients(whole)
    with torch.autocast("cpu", torch.bfloat16):
        features = below(data)
        chunked = chunked_loss(chunks_of(head), features, list(head.parameters()))
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(chunked, expected)
    chunked[0].backward()
    for name, gradient in gradients(whole).items():
        other = expected_gradients[name]
        if other is None:
            assert gradient is None or not gradient.any()
            continue
        assert gradient is not None
        assert gradient.dtype == torch.float32
        largest = float(other.abs().max())
        torch.testing.assert_close(gradient, other, rtol=0.02, atol=0.01 * largest, msg=name)


def test_many_small_gradients_of_bf16_features_still_count() -> None:
    """300 chunks that each add 1: in bf16, where 256 + 1 = 256, a sum would stop there."""
    features = torch.zeros(1, dtype=torch.bfloat16, requires_grad=True)
    total = chunked_loss(lambda shared: (shared.float() for _ in range(300)), features, [])
    total[0].backward()
    assert features.grad is not None
    assert features.grad.item() == 300


def test_each_chunk_is_computed_after_the_previous_graph_is_freed(head: Head) -> None:
    """No more than a single chunk's graph is alive at a time."""
    alive: list[int] = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            alive.append(1)
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            alive.pop()
            return gradient

    def chunks(shared: Tensor) -> Iterator[Tensor]:
        for number in range(4):
            assert not alive
            yield Counted.apply(head(shared, number))

    chunked_loss(chunks, torch.randn(4, 6), list(head.parameters()))[0].backward()
    assert not alive


def test_a_chunk_that_raises_leaves_nothing_behind(head: Head) -> None:
    features = torch.randn(4, 6, requires_grad=True)

    def chunks(shared: Tensor) -> Iterator[Tensor]:
        yield head(shared, 0)
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        chunked_loss(chunks, features, list(head.parameters()))
    assert features.grad is None
    assert all(g is None for g in gradients(head).values())
    assert torch.is_grad_enabled()
    plain_sum(head, features)[0].backward()
    expected_gradients = gradients(head)
    chunked_loss(chunks_of(head), features, list(head.parameters()))[0].backward()
    assert_equal_gradients(gradients(head), expected_gradients)


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("chunks", [1, 4])
def test_gradients_of_many_parameters_are_added_and_scaled_together(chunks: int) -> None:
    parameters = [torch.ones(3, requires_grad=True) for _ in range(40)]
    features = torch.ones(3, requires_grad=True)

    def values(shared: Tensor) -> Iterator[Tensor]:
        return ((shared * torch.cat(parameters).view(40, 3)).sum()[None] for _ in range(chunks))

    with Operations() as operations:
        (2 * chunked_loss(values, features, parameters)[0]).backward()
    assert all(torch.equal(p.grad, torch.full((3,), 2.0 * chunks)) for p in parameters)
    assert operations.counts["aten::_foreach_add"] == chunks - 1
    assert (
        operations.counts["aten::_foreach_mul"] == 2
    )  # features, which may be bf16, and parameters
    assert operations.counts["aten::add"] + operations.counts["aten::add_"] == chunks - 1  # the sum
    assert operations.counts["aten::zeros_like"] == 0


def test_inputs_that_share_a_gradient_tensor_are_summed_apart() -> None:
    """Autograd returns one tensor as the gradient of both terms of a sum."""
    features, parameter = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    total = chunked_loss(
        lambda shared: ((shared + parameter).square().sum()[None] for _ in range(3)),
        features,
        [parameter],
    )
    total[0].backward()
    for gradient in (features.grad, parameter.grad):
        torch.testing.assert_close(gradient, torch.full((2,), 12.0))
