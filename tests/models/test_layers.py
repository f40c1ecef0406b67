"""Our layers draw, name and compute what timm's do, to the bit."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from timm.layers import LayerNorm2d as TimmNorm
from timm.layers import Mlp as TimmMlp
from timm.layers import PatchEmbed as TimmPatchEmbed
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from efficientsam_pl.models.layers import (
    Block,
    LayerNorm2d,
    Mlp,
    PatchEmbed,
    SelfAttention,
    resample_positions,
)

_norm = partial(nn.LayerNorm, eps=1e-6)
Build = Callable[[], nn.Module]
PAIRS: dict[str, tuple[Build, Build, tuple[int, ...]]] = {
    "block": (
        lambda: Block(24, 3, _norm),
        lambda: TimmBlock(24, 3, qkv_bias=True, norm_layer=_norm),
        (2, 7, 24),
    ),
    "mlp": (lambda: Mlp(12, 20), lambda: TimmMlp(12, 20), (3, 12)),
    "mlp with relu": (
        lambda: Mlp(12, 20, act_layer=nn.ReLU),
        lambda: TimmMlp(12, 20, act_layer=nn.ReLU),
        (3, 12),
    ),
    "norm": (lambda: LayerNorm2d(6), lambda: TimmNorm(6), (2, 6, 5, 3)),
    "patches": (
        lambda: PatchEmbed(4, 10),
        lambda: TimmPatchEmbed(img_size=None, patch_size=4, embed_dim=10, flatten=False),
        (2, 3, 18, 12),
    ),
}


def drawn(build: Build) -> tuple[nn.Module, Tensor]:
    """Build from a seed; return a draw after it, which shows that as much was drawn."""
    torch.manual_seed(5)
    return build(), torch.rand(4)


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    output = module(x)
    output.square().sum().backward()
    return [output, *(p.grad for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", PAIRS)
def test_layer_is_timms(name: str) -> None:
    build, build_timm, shape = PAIRS[name]
    (ours, after), (timms, after_timm) = drawn(build), drawn(build_timm)
    assert torch.equal(after, after_timm)
    state, expected = ours.state_dict(), timms.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in state)
    x = torch.randn(shape)
    for one, other in zip(gradients(ours, x), gradients(timms, x), strict=True):
        assert torch.equal(one, other)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), timms(x))


def test_explicit_attention_is_timms() -> None:
    (ours, _), (timms, _) = drawn(PAIRS["block"][0]), drawn(PAIRS["block"][1])
    for block in (ours, timms):
        block.attn.fused_attn = False  # type: ignore[union-attr, assignment]
    x = torch.randn(2, 9, 24)
    assert torch.equal(ours(x), timms(x))


@pytest.mark.parametrize("grid", [[4, 4], [2, 8], [8, 2], [7, 5], [3, 3]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_are_resized_as_timm_does(grid: list[int], dtype: torch.dtype) -> None:
    positions = torch.randn(1, 16, 6).to(dtype)
    expected = resample_abs_pos_embed(positions, grid, num_prefix_tokens=0, antialias=False)
    assert torch.equal(resample_positions(positions, grid), expected)


def test_heads_that_do_not_divide_the_width_are_an_error() -> None:
    with pytest.raises(ValueError, match="width=10 cannot be split into heads=3"):
        SelfAttention(10, 3)
