import math

import torch
from torch import Tensor

from efficientsam_pl.keyed_random import sample_key
from efficientsam_pl.models.masking import TokenSplit, permute_tokens, random_split


def keys(*samples: str, epoch: int = 0) -> Tensor:
    return torch.tensor([sample_key(0, epoch, sample) for sample in samples])


def test_visible_and_masked_tokens_are_each_token_once() -> None:
    split = random_split(keys("a", "b", "c"), tokens=196, visible=49)
    assert split.visible.shape == (3, 49)
    assert split.masked.shape == (3, 147)
    for visible, masked in zip(split.visible.tolist(), split.masked.tolist(), strict=True):
        assert sorted(visible + masked) == list(range(196))


def test_restore_puts_each_token_at_its_place() -> None:
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(16, generator=generator) for _ in range(3)])
    split = TokenSplit(order[:, :5], order[:, 5:])
    visible, masked = torch.randn(3, 5, 2), torch.randn(3, 11, 2)
    expected = torch.full((3, 16, 2), math.nan)
    for image in range(3):
        for row, place in enumerate(split.visible[image].tolist()):
            expected[image, place] = visible[image, row]
        for row, place in enumerate(split.masked[image].tolist()):
            expected[image, place] = masked[image, row]
    assert torch.equal(split.restore(visible, masked), expected)


def test_a_split_depends_on_its_samples_key_alone() -> None:
    together = random_split(keys("a", "b", "c"), 196, 49)
    torch.manual_seed(9)
    other_batch = random_split(keys("c", "x", "a", "y"), 196, 49)
    assert torch.equal(together.visible[0], other_batch.visible[2])
    assert torch.equal(together.masked[2], other_batch.masked[0])
    assert not torch.equal(together.visible[0], together.visible[1])
    next_epoch = random_split(keys("a", epoch=1), 196, 49)
    assert not torch.equal(together.visible[0], next_epoch.visible[0])


def test_every_token_is_seen_equally_often() -> None:
    split = random_split(keys(*(str(i) for i in range(2000))), 16, 4)
    counts = torch.bincount(split.visible.flatten(), minlength=16)
    # 2000 draws with a chance of 1/4: mean 500, standard deviation 19
    assert (counts - 500).abs().max() < 5 * 19.4


def test_gradients_of_permuted_tokens_follow_them() -> None:
    order, inverse = random_split(keys("a", "b"), 16, 4).order_and_inverse()
    tokens = torch.randn(2, 16, 3, dtype=torch.double, requires_grad=True)
    permuted = permute_tokens(tokens, order, inverse)
    for image, place in ((0, 2), (1, 13)):
        assert torch.equal(permuted[image, place], tokens[image, order[image, place]])
    assert torch.equal(permute_tokens(permuted, inverse, order), tokens)
    assert torch.autograd.gradcheck(lambda x: permute_tokens(x, order, inverse), tokens)
    shared = torch.randn(1, 16, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: permute_tokens(x.expand(2, -1, -1), order, inverse), shared
    )
    middle = permute_tokens(tokens, order, inverse, first=4, last=9)
    assert torch.equal(middle, permuted[:, 4:9])
    assert torch.autograd.gradcheck(lambda x: permute_tokens(x, order, inverse, 4, 9), tokens)
