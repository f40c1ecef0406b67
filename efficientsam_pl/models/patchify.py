"""Patches of images and MAE's reconstruction target: the pixels of each patch, normalised.

Axes: b images, n patches of the grid (row-major), gh gw patches per side, p pixels per side of a
patch, c channels.
"""

from functools import lru_cache

import torch
from jaxtyping import Float, Num, UInt8
from torch import Tensor

from efficientsam_pl.models.config import NAMED

_EPSILON = 1e-6  # as in MAE's code


def patchify(pixels: Float[Tensor, "b c h w"], patch_size: int) -> Float[Tensor, "b gh gw c p p"]:
    """Split images, whose sides are multiples of the patch size, into patches; returns a view."""
    rows_and_columns = pixels.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    patches: Tensor = rows_and_columns.permute(0, 2, 4, 1, 3, 5)
    return patches


def patch_targets(
    image: Num[Tensor, "b 3 s s"], patch_size: int
) -> Float[Tensor, "b n {3*patch_size**2}"]:
    """Compute the target of a masked autoencoder for images (values 0..255): `3 p p` per patch.

    The values of a patch run over rows, columns, then channels. They are normalised by the
    encoder's pixel mean and std, then to mean 0 and (unbiased) variance 1 within the patch.

    Source:
        He et al. 2021 (MAE), section 3, "normalized pixel values".
    """
    values = _normalised_patches(image, patch_size)
    variance, mean = torch.var_mean(values, dim=-1, keepdim=True)
    return (values - mean) / (variance + _EPSILON).sqrt()


def unpatchify(
    predicted: Float[Tensor, "b n values"], image: Num[Tensor, "b 3 s s"], patch_size: int
) -> UInt8[Tensor, "b 3 s s"]:
    """Turn predicted patches into pixels, using mean and variance of each patch of the image.

    The inverse of `patch_targets`: from perfect predictions it reconstructs the image.
    """
    variance, mean = torch.var_mean(_normalised_patches(image, patch_size), dim=-1, keepdim=True)
    values = predicted * (variance + _EPSILON).sqrt() + mean
    grid = image.shape[-1] // patch_size
    squares = values.unflatten(2, (patch_size, patch_size, 3)).unflatten(1, (grid, grid))
    scaled = squares.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
    mean, std = _pixel_mean_std(image.device)
    pixels: Tensor = (scaled * std + mean).round().clamp(0, 255).to(torch.uint8)
    return pixels


def _normalised_patches(
    image: Num[Tensor, "b 3 s s"], patch_size: int
) -> Float[Tensor, "b n values"]:
    mean, std = _pixel_mean_std(image.device)
    patches = patchify((image.float() - mean) / std, patch_size).permute(0, 1, 2, 4, 5, 3)
    return patches.flatten(3).flatten(1, 2)


@lru_cache(maxsize=8)  # a host-to-device copy in each step would synchronise
def _pixel_mean_std(
    device: torch.device,
) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """Return the encoder's pixel mean and std for values 0..255."""
    named = NAMED["sam_vit_h"]
    mean, std = (
        torch.tensor(numbers, device=device).view(3, 1, 1)
        for numbers in (named.pixel_mean, named.pixel_std)
    )
    return mean, std
