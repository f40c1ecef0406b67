"""Photos cut into patches, and MAE's target: each patch of the photo, normalised by itself.

Axes: b photos, n patches of the grid (row-major), gh gw patches a side, p pixels a patch's side,
c channels.
"""

from functools import lru_cache

import torch
from jaxtyping import Float, Num, UInt8
from torch import Tensor

from efficientsam_pl.models.config import NAMED

_EPSILON = 1e-6  # as in MAE's code


def patchify(pixels: Float[Tensor, "b c h w"], patch_size: int) -> Float[Tensor, "b gh gw c p p"]:
    """The patches of photos whose sides are multiples of the patch size; a view, not a copy."""
    rows_and_columns = pixels.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    patches: Tensor = rows_and_columns.permute(0, 2, 4, 1, 3, 5)
    return patches


def patch_targets(
    image: Num[Tensor, "b 3 s s"], patch_size: int
) -> Float[Tensor, "b n {3*patch_size**2}"]:
    """What a masked autoencoder predicts of photos (values 0..255), `3 p p` numbers a patch.

    The numbers of a patch run over rows, columns, then channels, and have mean 0 and (unbiased)
    variance 1 over all three, after the photo's colours were brought to the encoder's scale.

    Source:
        He et al. 2021 (MAE), section 3, "normalized pixel values".
    """
    values = _colours_of_patches(image, patch_size)
    variance, mean = torch.var_mean(values, dim=-1, keepdim=True)
    return (values - mean) / (variance + _EPSILON).sqrt()


def unpatchify(
    predicted: Float[Tensor, "b n values"], image: Num[Tensor, "b 3 s s"], patch_size: int
) -> UInt8[Tensor, "b 3 s s"]:
    """Predicted patches as pixels, each with the mean and the spread of the photo's own patch.

    The inverse of `patch_targets`: a student that predicts these gets the photo back.
    """
    variance, mean = torch.var_mean(_colours_of_patches(image, patch_size), dim=-1, keepdim=True)
    values = predicted * (variance + _EPSILON).sqrt() + mean
    grid = image.shape[-1] // patch_size
    squares = values.unflatten(2, (patch_size, patch_size, 3)).unflatten(1, (grid, grid))
    scaled = squares.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
    mean, std = _colour_scale(image.device)
    pixels: Tensor = (scaled * std + mean).round().clamp(0, 255).to(torch.uint8)
    return pixels


def _colours_of_patches(
    image: Num[Tensor, "b 3 s s"], patch_size: int
) -> Float[Tensor, "b n values"]:
    mean, std = _colour_scale(image.device)
    patches = patchify((image.float() - mean) / std, patch_size).permute(0, 1, 2, 4, 5, 3)
    return patches.flatten(3).flatten(1, 2)


@lru_cache(maxsize=8)  # a copy to a GPU would be waited for in each step
def _colour_scale(
    device: torch.device,
) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """What the encoder subtracts from colours 0..255, and what it divides them by."""
    named = NAMED["sam_vit_h"]
    mean, std = (
        torch.tensor(numbers, device=device).view(3, 1, 1)
        for numbers in (named.pixel_mean, named.pixel_std)
    )
    return mean, std
