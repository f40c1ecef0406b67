"""Time one forward pass of EfficientSAM-Ti's encoder against the released implementation.

The released code materialises softmax(QK^T) of every head, and resizes the positions in every
forward pass.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.harness import (
    Row,
    Taken,
    alternate,
    parse_options,
    peak_memory_rise,
    report,
    timed_rows,
)
from efficientsam_pl.models.config import NAMED, EncoderConfig
from efficientsam_pl.models.vit import ImageEncoder, build_encoder

NAME = "encoder_forward"
CONFIG = NAMED["efficient_sam_ti"].encoder
_MATMUL_SIDE = 2048  # large enough that torch.mm runs at its full rate


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; the exit code does not depend on the goals."""
    options = parse_options(NAME, (__doc__ or "").splitlines()[0], argv)
    report(NAME, measure(CONFIG, rounds=9, seconds=40 if options.quick else 600), options)
    return 0


def measure(config: EncoderConfig, rounds: int, seconds: float) -> list[Row]:
    """Rows of an encoder: time, memory, difference, and the share of the lower bound.

    Args:
        config: A plain ViT.
        rounds: Maximum number of rounds.
        seconds: No further round starts that would end later than this.
    """
    start = time.perf_counter()
    side = f"{config.image_size}x{config.image_size}, float32, batch 1"
    memory, memory_released = (
        peak_memory_rise(partial(prepare, config, way)) / 2**20 for way in ("ours", "released")
    )
    ours, released = prepare(config, "ours"), prepare(config, "released")
    difference = float((ours() - released()).abs().max())  # also the warm-up at full size
    square = torch.randn(_MATMUL_SIDE, _MATMUL_SIDE)
    taken = alternate(
        {"ours": ours, "released": released, "matmul": lambda: square @ square},
        rounds,
        seconds - (time.perf_counter() - start),
    )
    return [
        *timed_rows(
            ("encoder_forward.time", "encoder_forward.processor_time"),
            f"forward of the encoder, {side}; median of {taken['ours'].rounds} rounds",
            taken["ours"],
            taken["released"],
            goal=0.50,
        ),
        Row(
            id="encoder_forward.peak_memory",
            work=f"rise of resident memory during a forward, {side}",
            value=memory,
            unit="MiB",
            reference=memory_released,
            goal=0.40,
        ),
        Row(
            id="encoder_forward.difference",
            work="largest absolute difference of the features",
            value=difference,
            unit="",
            goal=1e-4,
        ),
        floor_row(config, taken),
    ]


def floor_row(config: EncoderConfig, taken: Mapping[str, Taken]) -> Row:
    """Compare our rate with that of a single matmul in the same run."""
    gflop = forward_flop(config) / 1e9
    return Row(
        id="encoder_forward.floor",
        work=f"{gflop:.1f} GFLOP a forward; share of the rate of a bare "
        f"{_MATMUL_SIDE}^3 float32 matmul",
        value=gflop / taken["ours"].wall,
        unit="GFLOP/s",
        reference=2 * _MATMUL_SIDE**3 / 1e9 / taken["matmul"].wall,
        better="higher",
    )


def prepare(config: EncoderConfig, way: Literal["ours", "released"]) -> Callable[[], Tensor]:
    """Prepare a forward pass with seeded weights, after a warm-up on a small image."""
    torch.manual_seed(0)
    encoder = build_encoder(config).eval()
    assert isinstance(encoder, ImageEncoder)
    pixels = torch.randn(1, 3, config.image_size, config.image_size)
    call = encoder if way == "ours" else partial(released_forward, encoder)

    def forward(pixels: Tensor = pixels) -> Tensor:
        with torch.inference_mode():
            features: Tensor = call(pixels)
        return features

    forward(pixels[..., : 4 * config.patch_size, : 4 * config.patch_size])
    return forward


def released_forward(encoder: ImageEncoder, pixels: Tensor) -> Tensor:
    """Run the released implementation with the same weights, [b, 3, h, w] to [b, c, gh, gw]."""
    trunk = encoder.trunk
    patches = trunk.patch_embed(pixels).permute(0, 2, 3, 1)
    rows, columns = patches.shape[1:3]
    tokens = (patches + _resized_positions(trunk.pos_embed, rows, columns)).flatten(1, 2)
    block: Any  # timm's
    for block in trunk.blocks:
        tokens = tokens + _explicit_attention(block.attn, block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
    features: Tensor = encoder.neck(tokens.unflatten(1, (rows, columns)).permute(0, 3, 1, 2))
    return features


def forward_flop(config: EncoderConfig) -> int:
    """Count the FLOPs of a forward pass by a formula.

    For n tokens of width c, a block's linears hold 12 c^2 weights (3 qkv, 1 projection, 8 MLP)
    and its two attention products cost n^2 c multiplications each, over all heads together.
    Norms, softmax and GELU are ignored: below 1 %.
    """
    n, c, out = config.grid() ** 2, config.width, config.neck_channels
    patches = n * c * 3 * config.patch_size**2
    block = n * 12 * c**2 + 2 * n**2 * c
    neck = n * (c * out + 9 * out**2)
    return 2 * (patches + config.depth * block + neck)


def _resized_positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    side = round((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    resized = functional.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def _explicit_attention(attention: Any, tokens: Tensor) -> Tensor:
    qkv = attention.qkv(tokens).unflatten(-1, (3, attention.heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5  # [b, heads, n, n]
    weights = scores.softmax(dim=-1)
    mixed: Tensor = attention.proj((weights @ v).transpose(1, 2).flatten(2))
    return mixed
