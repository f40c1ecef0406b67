"""Random numbers as functions of a key, independent of ranks, workers and devices.

A key is one 64-bit number per sample, a hash of (seed, epoch, sample). The mixer is splitmix64
(Steele, Lea, Flood 2014: Fast splittable pseudorandom number generators), whose integer
arithmetic is the same on every device.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt64
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
_MIX_A = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_B = -7723592293110705685  # 0x94D049BB133111EB


def sample_key(seed: int, epoch: int, sample: str) -> int:
    """Hash a sample in an epoch of a run with this seed to a key of 63 bits."""
    digest = hashlib.blake2b(
        f"{seed}/{epoch}/{sample}".encode("utf-8", "surrogateescape"), digest_size=8
    ).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform(
    key: Int64[Tensor, "*batch"], count: int, purpose: str
) -> Float[Tensor, "*batch {count}"]:
    """Draw `count` numbers in [0, 1) for each key, the same on every device.

    Args:
        key: One key per sample, from `sample_key`.
        count: Numbers per sample.
        purpose: Name of the use; two uses of one key draw independently.
    """
    mixed = _mix(_mix(key ^ _salt(purpose))[..., None] + _steps(count, key.device))
    return _shift_right(mixed, 40).float() / 2**24


def split_key(key: Int64[Tensor, "*batch"], count: int) -> Int64[Tensor, "*batch {count}"]:
    """Derive `count` independent keys from each sample's key, for instance one per mask."""
    return _mix(_mix(key ^ _salt("apart"))[..., None] + _steps(count, key.device))


def uniform_of(key: int, count: int, purpose: str) -> Float32[np.ndarray, "{count}"]:
    """Draw what `uniform` draws for one key, without torch: faster for many small draws."""
    counter = np.arange(1, count + 1, dtype=np.uint64)
    salted = np.array([key ^ _salt(purpose)], dtype=np.uint64)
    mixed = _mix_array(_mix_array(salted) + counter * np.uint64(_GOLDEN % 2**64))
    return (mixed >> np.uint64(40)).astype(np.float32) / np.float32(2**24)


def _steps(count: int, device: torch.device) -> Int64[Tensor, "{count}"]:
    """Multiples of the golden number, from 1: how far the generator's state is from the key.

    Compiled for a GPU, a multiple of `arange` itself would be an index, of 32 bits. `~n` is -n - 1.
    """
    return ~torch.arange(count, device=device) * -_GOLDEN


def _salt(purpose: str) -> int:
    return _cached_salt(purpose)


@lru_cache(maxsize=256)
def _cached_salt(purpose: str) -> int:
    return sample_key(0, 0, purpose)


# A constant in compiled code: torch.compiler.assume_constant_result, without importing the compiler
_salt._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _mix_array(x: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_A % 2**64)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_B % 2**64)
    mixed: UInt64[np.ndarray, "n"] = x ^ (x >> np.uint64(31))
    return mixed


def _mix(x: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any"]:
    x = (x ^ _shift_right(x, 30)) * _MIX_A
    x = (x ^ _shift_right(x, 27)) * _MIX_B
    return x ^ _shift_right(x, 31)


def _shift_right(x: Int64[Tensor, "*any"], bits: int) -> Int64[Tensor, "*any"]:
    return (x >> bits) & ((1 << (64 - bits)) - 1)
