"""Counts against formulas worked out by hand."""

import itertools
from typing import Literal

import pytest
import torch
from torch import Tensor

from benchmarks.encoder_forward.speed import forward_flop
from efficientsam_pl.models.config import EncoderConfig, SamiConfig, TeacherConfig
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.teacher import FrozenTeacher
from efficientsam_pl.training import flops
from efficientsam_pl.training.flops import matmul_rate, step_flops

SIDE, GRID, WIDTH = 96, 6, 64
STUDENT = EncoderConfig(width=WIDTH, depth=3, heads=2, image_size=SIDE, position_grid=GRID)
TARGET = 24


def sami(decoder: Literal["cross_attention", "self_attention"]) -> SamiConfig:
    return SamiConfig(
        student=STUDENT, decoder=decoder, decoder_depth=2, decoder_width=32, decoder_heads=2
    )


def predicted(student: Sami, image: Tensor) -> Tensor:
    features: Tensor = student(image, torch.zeros(1, dtype=torch.int64))[0]
    return features


def forward_by_hand(config: SamiConfig) -> tuple[int, int]:
    """Multiplications and additions of a photo's forward, and those of the patches among them.

    A block of width c holds 12 c^2 weights and its attention costs 2 n^2 c multiplications. In a
    block of cross-attention m queries look at n tokens: 2 c^2 of its weights work on the n
    (keys, values), 10 c^2 on the m (query, projection, MLP), attention costs 2 m n c. The first
    block's masked tokens are the same in all photos, so their queries, keys and values are
    computed once for all n places. The bias of the values, which passes through the attention,
    is projected once a block: c^2.
    """
    n, c, d = GRID**2, WIDTH, config.decoder_width
    visible = config.visible_tokens()
    masked = n - visible
    patches = visible * c * 3 * 16**2
    encoder = config.student.depth * (visible * 12 * c**2 + 2 * visible**2 * c)
    block = (
        n * 2 * d**2 + masked * 10 * d**2 + 2 * masked * n * d + d**2
        if config.decoder == "cross_attention"
        else n * 12 * d**2 + 2 * n**2 * d
    )
    shared = 0 if config.decoder == "self_attention" else (3 * n - 3 * masked) * d**2
    ends = visible * c * d + n * d * TARGET  # into the decoder, and the head
    return 2 * (patches + encoder + config.decoder_depth * block + shared + ends), 2 * patches


@pytest.mark.parametrize("decoder", ["cross_attention", "self_attention"])
def test_step_is_three_forwards_less_the_images_own_gradient(
    decoder: Literal["cross_attention", "self_attention"],
) -> None:
    config = sami(decoder)
    forward, patches = forward_by_hand(config)
    counted = step_flops(lambda: Sami(config, TARGET), predicted, SIDE)
    # each product has a gradient for both factors, but no gradient reaches the photo
    assert counted == 3 * forward - patches


def test_teacher_adds_its_forward_alone() -> None:
    encoder = EncoderConfig(
        kind="sam_vit",
        width=48,
        depth=2,
        heads=3,
        position_grid=GRID,
        neck_channels=TARGET,
        image_size=SIDE,
        window=GRID,
        global_blocks=(0, 1),
    )
    config = TeacherConfig(encoder=encoder, image_size=SIDE)
    alone, both = (
        step_flops(lambda: Sami(sami("cross_attention"), TARGET), predicted, SIDE, teacher)
        for teacher in (None, lambda: FrozenTeacher(config, GRID))
    )
    # SAM's relative positions: each query, of c channels over all heads, meets the vectors of
    # GRID rows and of GRID columns
    n = GRID**2
    positions = 2 * encoder.depth * (2 * n * GRID * encoder.width)
    assert both - alone == forward_flop(encoder) + positions


def test_counting_holds_no_memory_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    # twelve blocks of width 16384 are 155 GB of weights
    wide = SamiConfig(student=EncoderConfig(width=16384, heads=64, image_size=SIDE))
    assert step_flops(lambda: Sami(wide, TARGET), predicted, SIDE) > 1e12
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_are_counted_where_the_caller_has_switched_them_off() -> None:
    config = sami("cross_attention")
    counted = step_flops(lambda: Sami(config, TARGET), predicted, SIDE)
    with torch.no_grad():
        assert step_flops(lambda: Sami(config, TARGET), predicted, SIDE) == counted


def test_rate_is_flops_of_a_product_over_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes a hundredth of a second on each time that it is looked at."""
    looks = itertools.count()
    monkeypatch.setattr(flops.time, "perf_counter", lambda: next(looks) / 100)
    rate = matmul_rate(torch.device("cpu"), torch.float32, seconds=0.1)
    assert rate == pytest.approx(2 * 1024**3 / 0.01)


def test_measuring_the_rate_draws_none_of_the_runs_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    matmul_rate(torch.device("cpu"), torch.float32, seconds=0.01)
    assert torch.equal(torch.rand(4), expected)
