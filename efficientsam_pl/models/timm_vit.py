"""The patch tokens of a timm ViT, as a teacher (CLIP: ablation of the paper, 4.4)."""

from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.models import load_checkpoint
from torch import Tensor, nn

from efficientsam_pl.models.state_dicts import check_values
from efficientsam_pl.models.weights import read_weights
from efficientsam_pl.models.weights_source import WeightsError


class TimmPatches(nn.Module):
    """Patch features after the last norm, without class and register tokens."""

    def __init__(self, name: str, image_size: int) -> None:
        """Build the architecture with random weights.

        Raises:
            WeightsError: timm has no plain ViT of that name.
        """
        super().__init__()
        self.name = name
        self.trunk = _create_vit(name, img_size=image_size)
        pretrained = self.trunk.pretrained_cfg
        self.pixel_mean = tuple(255 * m for m in pretrained["mean"])
        self.pixel_std = tuple(255 * s for s in pretrained["std"])

    @staticmethod
    def feature_width(name: str) -> int:
        """Return the channels of the features without allocating weights."""
        with torch.device("meta"):
            return int(_create_vit(name).num_features)

    def load(self, weights: str) -> None:
        """Load a file in timm's names, of the same architecture and number of positions.

        Raises:
            WeightsError: The file cannot be read or belongs to another model.
        """
        is_numpy = weights.lower().endswith((".npz", ".npy"))
        state = {} if is_numpy else read_weights(weights).state
        try:
            if is_numpy:
                load_checkpoint(self.trunk, weights)  # released in JAX; timm converts them
                check_values(self.trunk.state_dict(), weights)
            else:
                self.trunk.load_state_dict(state)
        except WeightsError:
            raise
        except Exception as error:  # timm passes on whatever torch and NumPy raise
            reason = " ".join(str(error).split())[:200]
            raise WeightsError(
                f"{weights} does not hold weights of timm's {self.name}: {reason}"
            ) from error

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c gh gw"]:
        """Encode normalised images to one feature per patch."""
        tokens: Tensor = self.trunk.forward_features(pixels)[:, self.trunk.num_prefix_tokens :]
        rows, columns = self.trunk.patch_embed.dynamic_feat_size(pixels.shape[-2:])
        features: Tensor = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        return features


def _create_vit(name: str, **options: Any) -> Any:
    try:
        model = timm.create_model(name, pretrained=False, **options)
        if hasattr(model, "num_prefix_tokens"):
            return model
    except Exception as error:  # an unknown name, or an option that the model does not take
        raise WeightsError(_not_a_vit(name)) from error
    raise WeightsError(_not_a_vit(name))


def _not_a_vit(name: str) -> str:
    return f"teacher.timm_name={name} is not a plain ViT that timm can build"
