"""Tiles that several kernels load and compute, and how they are launched.

Rows of a prompt's folded tokens are heads x tokens; in a tile each head's tokens are padded to a
power of two, TOKENS. Padded tokens load as zeros.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """Sizes of a launch: a program goes through `chunk` image tokens, `rows` at a time."""

    rows: int
    chunk: int
    warps: int

    def chunks(self, image_tokens: int) -> int:
        """Count the programs of an image."""
        return -(-image_tokens // self.chunk)


def fitted(tiling: Tiling, image_tokens: int) -> Tiling:
    """Shrink a tiling to small images; a matrix product needs 16 rows."""
    most = max(16, triton.next_power_of_2(image_tokens))
    return Tiling(min(tiling.rows, most), min(tiling.chunk, most), tiling.warps)


def constants(folded: Tensor, tiling: Tiling) -> dict[str, Any]:
    """List the constants of every kernel, for folded tokens [m, h, t, c]."""
    _, heads, tokens, channels = folded.shape
    return {
        "HEADS": heads,
        "TOKENS": padded_tokens(heads, tokens),
        "CHANNELS": channels,
        "ROWS": tiling.rows,
        "PRECISION": "ieee" if folded.dtype == torch.float32 else "tf32",
        "num_warps": tiling.warps,
        "num_stages": 1,
    }


def padded_tokens(heads: int, tokens: int) -> int:
    """Round up to a power of two with at least 16 rows in all, as a matrix product needs."""
    return max(int(triton.next_power_of_2(tokens)), -(-16 // heads))


@triton.jit
def token_rows(HEADS: tl.constexpr, TOKENS: tl.constexpr, tokens):
    """Return the place of every row of a tile in [h * t], and whether it is a token."""
    row = tl.arange(0, HEADS * TOKENS)
    token = row % TOKENS
    return (row // TOKENS) * tokens + token, token < tokens


@triton.jit
def load_folded(
    folded, prompt, tokens, HEADS: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Load a prompt's [h * TOKENS, c] of [m, h * t, c]."""
    row, is_token = token_rows(HEADS, TOKENS, tokens)
    channel = tl.arange(0, CHANNELS)
    start = folded + prompt * HEADS * tokens * CHANNELS
    return tl.load(
        start + row[:, None] * CHANNELS + channel[None, :], mask=is_token[:, None], other=0.0
    )


@triton.jit
def load_per_token(
    values, prompt, tokens, HEADS: tl.constexpr, TOKENS: tl.constexpr, padding: tl.constexpr
):
    """Load a prompt's [h * TOKENS] of [m, h * t] as float32."""
    row, is_token = token_rows(HEADS, TOKENS, tokens)
    loaded = tl.load(values + prompt * HEADS * tokens + row, mask=is_token, other=padding)
    return loaded.to(tl.float32)


@triton.jit
def image_places(start, n, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the places of a tile's elements in [n, c], and which are of the image."""
    row = start + tl.arange(0, ROWS)
    places = row[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    return places, (row < n)[:, None]


@triton.jit
def store_per_token(
    out,
    tile,
    prompt,
    tokens,
    start,
    n,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Store a tile [rows, h * TOKENS] in a prompt's [h * t, n] of [m, h * t, n]."""
    row, is_token = token_rows(HEADS, TOKENS, tokens)
    place = start + tl.arange(0, ROWS)
    pointers = out + (prompt * HEADS * tokens + row[None, :]) * n + place[:, None]
    tl.store(pointers, tile.to(out.dtype.element_ty), mask=is_token[None, :] & (place < n)[:, None])
