"""A ViT of timm's as a teacher: its patch tokens (CLIP's is an ablation of the paper, 4.4)."""

from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.models import load_checkpoint
from torch import Tensor, nn

from efficientsam_pl.models.weights import WeightsError


class TimmPatches(nn.Module):
    """Features of the patches alone, behind the last norm; class and register tokens left out."""

    def __init__(self, name: str, image_size: int) -> None:
        """The architecture with fresh weights.

        Raises:
            WeightsError: timm has no plain ViT of that name.
        """
        super().__init__()
        self.name = name
        self.trunk = _created(name, img_size=image_size)
        told = self.trunk.pretrained_cfg
        self.pixel_mean = tuple(255 * m for m in told["mean"])
        self.pixel_std = tuple(255 * s for s in told["std"])

    @staticmethod
    def width_of(name: str) -> int:
        """Channels of the features."""
        with torch.device("meta"):
            return int(_created(name).num_features)

    def load(self, weights: str) -> None:
        """Takes a file of timm's names; positions are resized to this model's grid.

        Raises:
            WeightsError: It cannot be read, or is of another model.
        """
        try:
            load_checkpoint(self.trunk, weights)
        except Exception as error:  # timm lets through whatever torch and safetensors raise
            reason = " ".join(str(error).split())[:200]
            raise WeightsError(
                f"{weights} holds no weights of timm's {self.name}: {reason}"
            ) from error

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c gh gw"]:
        """Normalised photos to one feature a patch."""
        tokens: Tensor = self.trunk.forward_features(pixels)[:, self.trunk.num_prefix_tokens :]
        rows, columns = self.trunk.patch_embed.dynamic_feat_size(pixels.shape[-2:])
        features: Tensor = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        return features


def _created(name: str, **options: Any) -> Any:
    try:
        model = timm.create_model(name, pretrained=False, **options)
        if hasattr(model, "num_prefix_tokens"):
            return model
    except Exception as error:  # an unknown name, or an option that the model does not take
        raise WeightsError(_no_vit(name)) from error
    raise WeightsError(_no_vit(name))


def _no_vit(name: str) -> str:
    return f"teacher.timm_name={name} is no plain ViT that timm can build"
