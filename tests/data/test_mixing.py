"""Groups of mixed images: their partners, and what may not change them."""

import numpy as np
import pytest

from efficientsam_pl.data.class_config import MixConfig
from efficientsam_pl.data.mixing import Mix, SlotMix, draw_mix, group_generator, mixes

SIDE = 32
KEYS = [1000 + 17 * number for number in range(12)]


def mixed(keys: list[int], config: MixConfig, valid: list[bool] | None = None) -> list[SlotMix]:
    return mixes(keys, valid or [True] * len(keys), config, SIDE)


def test_partners_are_the_group_reversed_and_share_one_draw() -> None:
    slots = mixed(KEYS, MixConfig(group=4))
    assert [slot.partner for slot in slots] == [3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8]
    assert len({slot.mix for slot in slots[:4]}) == 1
    assert slots[0].mix != slots[4].mix


@pytest.mark.parametrize("micro_batch", [4, 8])
def test_micro_batches_of_whole_groups_draw_the_same(micro_batch: int) -> None:
    config = MixConfig(group=4)
    whole = [(KEYS[slot.partner], slot.mix) for slot in mixed(KEYS, config)]
    parts = [KEYS[first : first + micro_batch] for first in range(0, len(KEYS), micro_batch)]
    assert whole == [(keys[s.partner], s.mix) for keys in parts for s in mixed(keys, config)]


@pytest.mark.parametrize("count", [1, 3, 5, 7])
def test_the_middle_of_an_odd_batch_stays_as_it_is(count: int) -> None:
    slots = mixed(KEYS[:count], MixConfig(group=16))
    assert [slot.partner for slot in slots] == list(range(count))[::-1]
    middle = slots[count // 2]
    assert (middle.mix.own_share, middle.mix.box) == (1, (0, 0, 0, 0))


def test_an_image_whose_partner_is_missing_stays_as_it_is() -> None:
    slots = mixed(KEYS[:4], MixConfig(group=4), [True, True, True, False])
    assert [slot.partner for slot in slots] == [0, 2, 1, 3]
    assert [slot.mix.own_share == 1 for slot in slots] == [True, False, False, True]


def test_nothing_is_mixed_where_both_strengths_are_zero() -> None:
    slots = mixed(KEYS, MixConfig(mixup=0.0, cutmix=0.0))
    assert {slot.mix for slot in slots} == {Mix()}


def test_draws_follow_probability_switch_and_strength() -> None:
    config = MixConfig(probability=0.5, switch=0.25)
    draws = [draw_mix(group_generator(key), config, SIDE) for key in range(4000)]
    cut = np.mean([mix.box != (0, 0, 0, 0) for mix in draws])
    alone = np.mean([mix.own_share == 1 for mix in draws])
    assert alone == pytest.approx(0.5, abs=0.03)
    assert cut == pytest.approx(0.125, abs=0.02)
    for mix in draws:
        y0, y1, x0, x1 = mix.box
        assert 0 <= y0 <= y1 <= SIDE
        assert 0 <= x0 <= x1 <= SIDE
        if y1 > y0 and x1 > x0:
            assert mix.own_share == pytest.approx(1 - (y1 - y0) * (x1 - x0) / SIDE**2)


def test_cutmix_alone_always_cuts() -> None:
    draws = [draw_mix(group_generator(key), MixConfig(mixup=0.0), SIDE) for key in range(50)]
    assert np.mean([mix.own_share < 1 for mix in draws]) > 0.9
