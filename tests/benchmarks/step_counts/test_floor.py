"""Floors by hand, and counts that lie above them."""

import pytest

from benchmarks.step_counts import floor
from benchmarks.step_counts.recipes import RECIPES, SAMI
from benchmarks.step_counts.table import read_table


def test_block_reads_and_writes_each_tensor_of_a_product_once() -> None:
    """Two tokens of three channels in bf16, 55 times."""
    assert floor.block_bytes(2, 3) == 2 * 2 * 3 * 55


def test_masked_tokens_read_the_visible_ones_too() -> None:
    """Three masked tokens, one visible, two channels: 45 * 3 + 11 * 4 + 3 numbers a channel."""
    assert floor.cross_block_bytes(masked=3, visible=1, width=2) == 2 * 2 * 182


def test_layer_by_hand() -> None:
    """Five tokens from 2 to 3 channels: 2 read twice, their gradient, 3 written and read back."""
    assert floor.layer_bytes(5, 2, 3) == 2 * 5 * (3 * 2 + 2 * 3)


def test_prompts_image_tokens_and_logits_are_counted_with_their_gradients() -> None:
    """4096 tokens of 256 channels 10 times, 256 x 256 logits of four masks 6 times."""
    tokens, logits = 2 * 4096 * 256, 2 * 256 * 256
    assert floor.round_bytes(4096, 256, False, 4) == 10 * tokens + 6 * 4 * logits
    assert floor.round_bytes(4096, 256, True, 1) == 16 * tokens + 6 * logits


@pytest.mark.parametrize("recipe", RECIPES)
def test_counted_steps_move_more_than_the_floor(recipe: str) -> None:
    counts = read_table(recipe, "s" if recipe == SAMI else "ti")
    counted = 1e9 * (counts.images * counts.image_gb + counts.step_gb)
    least = sum(floor.floors()[recipe].values())
    assert least < counted < 6 * least
