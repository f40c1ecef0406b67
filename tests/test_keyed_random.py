import jaxtyping
import numpy as np
import pytest
import torch

from efficientsam_pl.keyed_random import sample_key, split_key, uniform, uniform_of

WORD = (1 << 64) - 1


def splitmix64(x: int) -> int:
    """The output function as published, in whole numbers of any size."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def slow_uniform(key: int, count: int, purpose: str) -> list[float]:
    state = splitmix64((key & WORD) ^ sample_key(0, 0, purpose))
    steps = ((state + step * 0x9E3779B97F4A7C15) & WORD for step in range(1, count + 1))
    return [(splitmix64(state) >> 40) / 2**24 for state in steps]


def test_the_reference_gives_the_published_sequence() -> None:
    # The first numbers of the generator seeded with 1234567, as in Rosetta Code's test
    states = [(1234567 + step * 0x9E3779B97F4A7C15) & WORD for step in (1, 2)]
    published = [6457827717110365317, 3203168211198807973]
    assert [splitmix64(state) for state in states] == published


@pytest.mark.parametrize("key", [0, 1, 12345, (1 << 63) - 1, -1, -(1 << 63)])
def test_draws_equal_unbounded_integers(key: int) -> None:
    assert uniform(torch.tensor(key), 9, "clicks").tolist() == slow_uniform(key, 9, "clicks")


@pytest.mark.slow
def test_compiled_draws_in_another_shape_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # checks cannot be compiled

    def pairs(key: torch.Tensor) -> torch.Tensor:
        return uniform(key, 4, "clicks").unflatten(1, (2, 2)) * torch.arange(2)[:, None]

    key = torch.tensor([12345, -1])
    assert torch.equal(torch.compile(pairs, dynamic=False)(key), pairs(key))


def test_draws_do_not_depend_on_the_batch() -> None:
    keys = torch.tensor([sample_key(0, 0, f"sample {index}") for index in range(6)])
    together = uniform(keys, 5, "masks")
    alone = torch.stack([uniform(key, 5, "masks") for key in keys])
    assert torch.equal(together, alone)
    assert torch.equal(uniform(keys.flip(0), 5, "masks"), together.flip(0))
    assert torch.equal(uniform(keys.view(2, 3), 5, "masks"), together.view(2, 3, 5))


def test_fewer_draws_are_the_first_of_many() -> None:
    key = torch.tensor([7])
    assert torch.equal(uniform(key, 3, "masks"), uniform(key, 8, "masks")[:, :3])


def test_draws_are_uniform_in_the_unit_interval() -> None:
    draws = uniform(torch.arange(1000), 100, "crop").flatten()
    assert draws.min() >= 0
    assert draws.max() < 1
    # Five standard errors of 100,000 draws: 5 * sqrt(1/12 / n), and 5 * sqrt(1/180 / n)
    assert draws.mean().item() == pytest.approx(1 / 2, abs=0.0046)
    assert draws.var().item() == pytest.approx(1 / 12, abs=0.0012)
    # A thousand draws a bin, within six standard deviations
    assert (draws.histc(bins=100, min=0, max=1) - 1000).abs().max() < 6 * 1000**0.5


@pytest.mark.parametrize(("key", "purpose"), [(7, "crop"), (8, "masks")])
def test_another_purpose_or_key_draws_independently(key: int, purpose: str) -> None:
    first = uniform(torch.tensor(7), 4096, "masks")
    other = uniform(torch.tensor(key), 4096, purpose)
    correlation = torch.corrcoef(torch.stack([first, other]))[0, 1]
    assert correlation.abs() < 5 / 4096**0.5  # five standard errors


def test_keys_differ_by_seed_epoch_and_sample_and_fit_in_int64() -> None:
    keys = {
        sample_key(seed, epoch, sample)
        for seed in range(10)
        for epoch in range(10)
        for sample in ("a", "b", "1/a")
    }
    assert len(keys) == 300
    assert all(0 <= key < 1 << 63 for key in keys)
    assert sample_key(1, 2, "a") == sample_key(1, 2, "a")


def test_draws_without_torch_are_the_same() -> None:
    for key in [0, 1, 2**62 + 12345, sample_key(3, 1, "photo")]:
        for purpose, count in (("crop", 42), ("flip", 1), ("none", 0)):
            expected = uniform(torch.tensor(key), count, purpose).numpy()
            np.testing.assert_array_equal(uniform_of(key, count, purpose), expected)


def test_names_that_are_no_utf8_have_keys_too() -> None:
    assert sample_key(0, 0, "photo\udcff") != sample_key(0, 0, "photo\udcfe")


def test_keys_apart_are_the_generators_sequence() -> None:
    for key in (0, 12345, (1 << 63) - 1):
        state = splitmix64(key ^ sample_key(0, 0, "apart"))
        expected = [splitmix64((state + step * 0x9E3779B97F4A7C15) & WORD) for step in range(1, 6)]
        assert [k & WORD for k in split_key(torch.tensor(key), 5).tolist()] == expected


def test_keys_apart_do_not_depend_on_the_batch_nor_on_how_many_there_are() -> None:
    keys = torch.tensor([sample_key(0, 0, str(i)) for i in range(6)])
    together = split_key(keys, 8)
    assert torch.equal(split_key(keys.flip(0), 8), together.flip(0))
    assert torch.equal(split_key(keys.view(2, 3), 3), together.view(2, 3, 8)[..., :3])
    assert together.unique().numel() == 48


def test_things_of_one_sample_draw_independently() -> None:
    """Independent of each other, of the sample's draws, and of neighbouring keys."""
    sample = torch.tensor([sample_key(0, 0, "photo")])
    masks = uniform(split_key(sample, 20), 4096, "clicks")[0]
    drawn = uniform(sample, 4096, "clicks")
    correlation = torch.corrcoef(torch.cat([drawn, masks]))
    assert correlation.triu(1).abs().max() < 6 / 4096**0.5  # six standard errors, 210 pairs
    first = uniform(split_key(torch.arange(4096), 2), 1, "clicks")[..., 0].T
    assert torch.corrcoef(first)[0, 1].abs() < 5 / 4096**0.5


def test_compiled_draws_are_equal_and_have_no_graph_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # checks cannot be compiled

    def draws(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return uniform(split_key(keys, 4), 3, "clicks"), uniform(keys, 2, "boxes")

    keys = torch.tensor([sample_key(0, 0, str(i)) for i in range(6)])
    compiled = torch.compile(draws, backend="aot_eager", fullgraph=True, dynamic=False)
    for value, expected in zip(compiled(keys), draws(keys), strict=True):
        assert torch.equal(value, expected)
