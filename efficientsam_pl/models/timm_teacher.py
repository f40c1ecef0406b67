"""Image encoders of timm as teachers: plain ViTs (CLIP: ablation of 4.4; DINOv3), SAM 2's Hiera."""

from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.models import load_checkpoint
from torch import Tensor, nn

from efficientsam_pl.models.config import HIERA_PREFIX, HIERA_STRIDE
from efficientsam_pl.models.state_dicts import check_values
from efficientsam_pl.models.weights import read_weights, strip_prefix
from efficientsam_pl.models.weights_source import WeightsError

_SAM2_TRUNK = "image_encoder.trunk."  # in Meta's files of SAM 2 and 2.1


class TimmTeacher(nn.Module):
    """A model of timm, with random weights until some are loaded."""

    def __init__(self, name: str, **options: Any) -> None:
        """Build the architecture.

        Raises:
            WeightsError: timm has no model of that name and these options.
        """
        super().__init__()
        self.name = name
        self.trunk = _create(name, **options)
        pretrained = self.trunk.pretrained_cfg
        self.pixel_mean = tuple(255 * m for m in pretrained["mean"])
        self.pixel_std = tuple(255 * s for s in pretrained["std"])

    def load(self, weights: str) -> None:
        """Load a file in timm's names, of the same architecture and number of positions.

        Raises:
            WeightsError: The file cannot be read or belongs to another model.
        """
        is_numpy = weights.lower().endswith((".npz", ".npy"))
        state = {} if is_numpy else self.timm_names(read_weights(weights).state)
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

    def timm_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of a released file as timm does; by default they are timm's."""
        return state


class TimmPatches(TimmTeacher):
    """Patch features of a ViT after its last norm, without class and register tokens."""

    def __init__(self, name: str, image_size: int) -> None:
        """Build the architecture with random weights.

        Raises:
            WeightsError: timm has no plain ViT of that name.
        """
        super().__init__(name, img_size=image_size)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c gh gw"]:
        """Encode normalised images to one feature per patch."""
        tokens: Tensor = self.trunk.forward_features(pixels)[:, self.trunk.num_prefix_tokens :]
        rows, columns = self.trunk.patch_embed.dynamic_feat_size(pixels.shape[-2:])
        features: Tensor = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        return features


class TimmHiera(TimmTeacher):
    """SAM 2's Hiera: the features of its stage of stride 16, the grid of SAM's decoder.

    SAM 2's own neck, which fuses stages, is no part of timm's model.
    """

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c gh gw"]:
        """Encode normalised images to features of stride 16; later stages do not run."""
        [features] = self.trunk.forward_intermediates(
            pixels, indices=[_stage(self.trunk)], intermediates_only=True
        )
        encoded: Tensor = features
        return encoded

    def timm_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the trunk of Meta's files of SAM 2 and 2.1; timm's names pass unchanged."""
        trunk = strip_prefix(state, _SAM2_TRUNK) or state
        return {
            name.replace("mlp.layers.0", "mlp.fc1").replace("mlp.layers.1", "mlp.fc2"): tensor
            for name, tensor in trunk.items()
        }


def build_timm_teacher(name: str, image_size: int) -> TimmTeacher:
    """Build a teacher with random weights.

    Raises:
        WeightsError: timm has no model of that name that can be a teacher.
    """
    if name.startswith(HIERA_PREFIX):
        return TimmHiera(name)
    return TimmPatches(name, image_size)


def timm_feature_width(name: str) -> int:
    """Return the channels of a teacher's features without allocating weights."""
    with torch.device("meta"):
        model = _create(name)
    if name.startswith(HIERA_PREFIX):
        return int(model.feature_info[_stage(model)]["num_chs"])
    return int(model.num_features)


def _stage(hiera: Any) -> int:
    return [stage["reduction"] for stage in hiera.feature_info].index(HIERA_STRIDE)


def _create(name: str, **options: Any) -> Any:
    try:
        model = timm.create_model(name, pretrained=False, **options)
        if hasattr(model, "num_prefix_tokens") or name.startswith(HIERA_PREFIX):
            return model
    except Exception as error:  # an unknown name, or an option that the model does not take
        raise WeightsError(_no_teacher(name)) from error
    raise WeightsError(_no_teacher(name))


def _no_teacher(name: str) -> str:
    return (
        f"teacher.timm_name={name} is not a plain ViT that timm can build, nor one of its "
        f"{HIERA_PREFIX}* (`timm.list_models('vit_*')` lists them)"
    )
