"""The fused upscaling against the formulas in float64, interpreted, and compiled for an H200."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from efficientsam_pl.models.kernels import mask_upscaling
from efficientsam_pl.models.kernels.mask_upscaling import UpscalingWeights, fused_mask_logits

EPS = 1e-6
# prompts, rows, columns, channels, mask tokens: several tiles with a rest, several chunks, no
# powers of 2
SIZES = [(1, 3, 43, 16, 2), (2, 4, 8, 32, 4), (2, 3, 5, 24, 3)]


def by_formula(
    attended: Tensor, kernels: Tensor, weights: UpscalingWeights, per_pixel: bool
) -> Tensor:
    c = attended.shape[-1]
    first = weights.w1.view(2, 2, c // 4, c).permute(3, 2, 0, 1)
    second = weights.w2.view(2, 2, c // 8, c // 4).permute(3, 2, 0, 1)
    x = F.conv_transpose2d(attended.permute(0, 3, 1, 2), first, weights.b1, stride=2)
    if per_pixel:
        x = F.layer_norm(x.permute(0, 2, 3, 1), (c // 4,), weights.norm_w, weights.norm_b, EPS)
        x = x.permute(0, 3, 1, 2)
    else:
        x = F.group_norm(x, 1, weights.norm_w, weights.norm_b, EPS)
    pixels = F.gelu(F.conv_transpose2d(F.gelu(x), second, weights.b2, stride=2))
    return torch.einsum("mke,mehw->mkhw", kernels, pixels)


def random_inputs(
    size: tuple[int, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor, UpscalingWeights]:
    m, rows, columns, c, k = size
    torch.manual_seed(0)
    shapes = [(c, c), (c // 4,), (c // 4,), (c // 4,), (c // 2, c // 4), (c // 8,)]
    weights = UpscalingWeights(*(torch.randn(shape) for shape in shapes))
    weights = weights._replace(w1=0.3 * weights.w1, w2=0.3 * weights.w2)
    rounded = weights._replace(w1=weights.w1.to(dtype), w2=weights.w2.to(dtype))
    attended = (torch.randn(m, rows, columns, c) + 0.5).to(dtype)  # a mean: norms must subtract it
    return attended, torch.randn(m, k, c // 8).to(dtype), rounded


def largest_error(size: tuple[int, ...], per_pixel: bool, dtype: torch.dtype) -> float:
    """Relative, of the logits and of the gradient of every input."""
    attended, kernels, weights = random_inputs(size, dtype)
    results = []
    for double in (False, True):
        leaves = [
            (x.double() if double else x.clone()).requires_grad_()
            for x in (attended, kernels, *weights)
        ]
        inputs = (leaves[0], leaves[1], UpscalingWeights(*leaves[2:]))
        if double:
            logits = by_formula(*inputs, per_pixel)
        else:
            logits = fused_mask_logits(*inputs, per_pixel, EPS)
        weight = torch.cos(torch.arange(logits.numel())).view_as(logits).to(dtype)
        gradients = torch.autograd.grad(logits, leaves, weight.to(logits.dtype))
        results.append([logits.detach(), *gradients])
    return max(
        ((ours.double() - exact).norm() / exact.norm()).item()
        for ours, exact in zip(*results, strict=True)
    )


@pytest.mark.parametrize("per_pixel", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_plain_twins_are_the_formula(size: tuple[int, ...], per_pixel: bool) -> None:
    assert largest_error(size, per_pixel, torch.float32) < 1e-5
    assert 1e-4 < largest_error(size, per_pixel, torch.bfloat16) < 0.03


def test_moments_of_a_map_far_from_zero_are_exact() -> None:
    """A sum of squares in float32 would lose the variance beside a mean 3000 times as large."""
    x = torch.randn(1, 64, 16)
    w1, b1 = 0.1 * torch.randn(16, 16), torch.full((4,), 1000.0)
    mean, rstd = mask_upscaling._map_moments(x, [w1, b1], 0.0)[0]
    exact = (x.double() @ w1.double().T) + 1000
    assert mean.item() == pytest.approx(exact.mean().item(), rel=1e-6)
    assert rstd.item() == pytest.approx(1 / exact.std(unbiased=False).item(), rel=1e-3)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck reads those of a list's copies
@pytest.mark.parametrize("per_pixel", [False, True])
def test_operators_can_be_traced(per_pixel: bool) -> None:
    attended, kernels, weights = random_inputs((2, 2, 4, 16, 2), torch.float32)
    x = attended.flatten(1, 2)
    moments = None if per_pixel else torch.tensor([[0.1, 1.0], [0.2, 2.0]])
    common: tuple[Any, ...] = (kernels, list(weights), moments, 4, EPS)
    learned = [w.clone().requires_grad_() for w in weights]
    given = (x.clone().requires_grad_(), kernels.clone().requires_grad_(), learned, *common[2:])
    torch.library.opcheck(mask_upscaling.mask_upscaling, given)
    d_logits, d_affine = torch.randn(2, 2, 8, 16), torch.randn(2, 8, 16)
    torch.library.opcheck(mask_upscaling.mask_upscaling_backward, (d_logits, x, *common))
    torch.library.opcheck(mask_upscaling.mask_upscaling_moments, (x, list(weights[:2])))
    first, statistics = list(weights[:3]), torch.rand(2, 4)
    torch.library.opcheck(
        mask_upscaling.mask_upscaling_token_backward, (d_affine, x, first, statistics)
    )


INTERPRETED = """
import torch
from tests.models.kernels.test_mask_upscaling import SIZES, largest_error

for size, per_pixel, dtype, most in (
    (SIZES[0], False, torch.float32, 1e-5),
    (SIZES[2], True, torch.float32, 1e-5),
    (SIZES[2], False, torch.bfloat16, 0.03),  # the interpreter rounds towards 0
):
    error = largest_error(size, per_pixel, dtype)
    assert 0 < error < most, (size, per_pixel, dtype, error)
"""

COMPILED = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from efficientsam_pl.models.kernels.triton_kernels import mask_upscaling, mask_upscaling_backward
from efficientsam_pl.models.kernels.triton_kernels import upscaling_tiles

FLOAT32 = ("b1", "norm_w", "norm_b", "b2", "moments", "d_b1", "d_norm", "d_w2", "d_b2", "d_kernels")
SIZES = dict(C=256, C1=64, E=32, K=4, BC=256, BC1=64, BE=32, BK=4, PRECISION="native")


def compiled(kernel, per_pixel, tokens):
    constants = {**SIZES, "PER_PIXEL": per_pixel, "T": tokens}
    signature, aligned = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            wide = name.removesuffix("_ptr") in FLOAT32 or name == "out_ptr"
            signature[name] = "*fp32" if wide else "*bf16"
            aligned[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name == "eps" else "i32"
    given = {name: constants[name] for name in kernel.arg_names if name in constants}
    source = ASTSource(fn=kernel, signature=signature, constexprs=given, attrs=aligned)
    return triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options=upscaling_tiles.OPTIONS
    )


tile, small = upscaling_tiles.TILE_TOKENS, upscaling_tiles.GRADIENT_TILE_TOKENS
for kernel, per_pixel, tokens in (
    (mask_upscaling.moments_kernel, False, tile),
    (mask_upscaling.logits_kernel, False, tile),
    (mask_upscaling.logits_kernel, True, tile),
    (mask_upscaling_backward.gradients_kernel, False, small),
    (mask_upscaling_backward.gradients_kernel, True, small),
    (mask_upscaling_backward.token_gradients_kernel, False, tile),
):
    binary = compiled(kernel, per_pixel, tokens)
    assert "mma" in binary.asm["ptx"]  # tensor cores
    assert binary.metadata.shared <= 227 * 1024, binary.metadata.shared
    print(kernel.__name__, per_pixel, binary.metadata.shared, len(binary.asm["cubin"]))
"""


def run(program: str, **environment: str) -> None:
    """In a subprocess: the interpreter is chosen at import, and shape checks cannot be traced."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, "PYTHONPATH": ".", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_interpreted_kernels_are_the_formula() -> None:
    pytest.importorskip("triton")
    run(INTERPRETED, TRITON_INTERPRET="1")


@pytest.mark.slow
def test_kernels_compile_for_an_h200_within_its_shared_memory(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))
