"""Photos cut into patches, and MAE's target: each patch of the photo, normalised by itself.

Axes: b photos, n patches of the grid (row-major), gh gw patches a side, p pixels a patch's side,
c channels.
"""

import torch
from jaxtyping import Float, Num
from torch import Tensor

from efficientsam_pl.models.config import NAMED


def cut(pixels: Float[Tensor, "b c h w"], patch_size: int) -> Float[Tensor, "b gh gw c p p"]:
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
        He et al. 2021 (MAE), section 3, "normalized pixel values"; 1e-6 as in its code.
    """
    named = NAMED["sam_vit_h"]
    mean, std = (
        torch.tensor(numbers, device=image.device).view(3, 1, 1)
        for numbers in (named.pixel_mean, named.pixel_std)
    )
    patches = cut((image.float() - mean) / std, patch_size).permute(0, 1, 2, 4, 5, 3)
    values = patches.flatten(3).flatten(1, 2)
    variance, mean = torch.var_mean(values, dim=-1, keepdim=True)
    return (values - mean) / (variance + 1e-6).sqrt()
