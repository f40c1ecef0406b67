"""The teacher: SAM's image encoder, frozen, its features brought to the student's grid."""

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Num
from torch import Tensor, nn

from efficientsam_pl.models.config import NAMED, SamiConfig, TeacherConfig
from efficientsam_pl.models.segmenter import PixelNorm
from efficientsam_pl.models.vit import SamImageEncoder
from efficientsam_pl.models.weights import load_strictly, part, read_weights


class FrozenTeacher(nn.Module):
    """Maps photos to target features; never trained, never in training mode, no gradient.

    Without a file its weights are random but seeded: SAM's architecture with nothing learned,
    for trials only.
    """

    def __init__(self, config: TeacherConfig, target: str, grid: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # built on the CPU, whatever there is besides
            torch.default_generator.manual_seed(config.seed)
            self.encoder = SamImageEncoder(config.encoder)
            if config.weights is None:
                _randomise(self.encoder)
        if config.weights is not None:
            state = part(read_weights(config.weights).state, "image_encoder.")
            load_strictly(self.encoder, state, config.weights)
        self.pixel_norm = PixelNorm(NAMED["sam_vit_h"].pixel_mean, NAMED["sam_vit_h"].pixel_std)
        self.image_size, self.target, self.grid = config.image_size, target, grid
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stays in evaluation mode whatever the student does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Num[Tensor, "b 3 s s"]) -> Float[Tensor, "b n c"]:
        """Features of photos (values 0..255), row-major over the student's grid.

        At `image_size` other than the photo's, the photo is resized first (bicubic) and the
        features are averaged down to the grid.
        """
        pixels = self.pixel_norm(image)
        if pixels.shape[-1] != self.image_size:
            pixels = F.interpolate(pixels, (self.image_size,) * 2, mode="bicubic", antialias=True)
        encode = self.encoder if self.target == "neck" else self.encoder.trunk_features
        features = cast(Tensor, encode(pixels))
        if features.shape[-1] != self.grid:
            features = F.interpolate(
                features.float(), (self.grid,) * 2, mode="bilinear", antialias=True
            )
        return features.flatten(2).transpose(1, 2)


def teacher_width(config: TeacherConfig, sami: SamiConfig) -> int:
    """Channels of the target features."""
    encoder = config.encoder
    return encoder.neck_channels if sami.target == "neck" else encoder.width


def _randomise(encoder: SamImageEncoder) -> None:
    """Spread out what timm starts at zero, so that the random teacher looks at positions too."""
    for name, parameter in encoder.named_parameters():
        if name.endswith(("rel_pos_h", "rel_pos_w")):
            nn.init.normal_(parameter, std=0.1)
        elif name.endswith("pos_embed"):
            nn.init.normal_(parameter, std=0.02)
