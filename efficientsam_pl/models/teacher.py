"""The teacher: a frozen image encoder whose features are brought to the student's grid."""

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from efficientsam_pl.models.config import NAMED, TeacherConfig
from efficientsam_pl.models.segmenter import PixelNorm
from efficientsam_pl.models.timm_vit import TimmPatches
from efficientsam_pl.models.vit import SamImageEncoder
from efficientsam_pl.models.weights import load_strictly, read_weights, strip_prefix

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class FrozenTeacher(nn.Module):
    """Maps photos to target features; never trained, never in training mode, no gradient.

    Without a file its weights are random but seeded: an architecture with nothing learned, for
    trials only.
    """

    def __init__(self, config: TeacherConfig, grid: int) -> None:
        """A teacher on the CPU.

        Args:
            config: Of kind `sam` or `timm`.
            grid: Tokens a side that its features are brought to.

        Raises:
            WeightsError: A file that cannot be read or is of another model.
        """
        super().__init__()
        self.width = feature_width(config)
        with torch.random.fork_rng(devices=[]):  # built on the CPU, whatever there is besides
            torch.default_generator.manual_seed(config.seed)
            self.encoder = _timm_encoder(config) if config.kind == "timm" else _sam_encoder(config)
        mean, std = (
            (self.encoder.pixel_mean, self.encoder.pixel_std)
            if isinstance(self.encoder, TimmPatches)
            else (NAMED["sam_vit_h"].pixel_mean, NAMED["sam_vit_h"].pixel_std)
        )
        self.pixel_norm = PixelNorm(mean, std)
        self.image_size, self.output, self.grid = config.image_size, config.output, grid
        self.at_once = config.at_once()
        self.dtype = _DTYPES[config.precision]
        self.encoder.to(self.dtype)
        self.requires_grad_(False)
        self.eval()

    def blocks(self) -> list[nn.Module]:
        """The encoder's blocks, which are computed, compiled and sharded one by one."""
        return list(cast(nn.ModuleList, self.encoder.trunk.blocks))

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stays in evaluation mode whatever the student does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Num[Tensor, "b 3 s s"]) -> Float[Tensor, "b n c"]:
        """Features of photos (values 0..255), row-major over the student's grid.

        At `image_size` other than the photo's, the photo is resized first (bicubic) and the
        features are averaged down to the grid. Memory is that of `at_once` photos.
        """
        return torch.cat([self._of_some(some) for some in image.split(self.at_once)])

    def _of_some(self, image: Num[Tensor, "b 3 s s"]) -> Float[Tensor, "b n c"]:
        pixels = self.pixel_norm(image)
        if pixels.shape[-1] != self.image_size:
            pixels = F.interpolate(pixels, (self.image_size,) * 2, mode="bicubic", antialias=True)
        features = self._encode(pixels)
        if features.shape[-1] != self.grid:
            features = F.interpolate(
                features.float(), (self.grid,) * 2, mode="bilinear", antialias=True
            )
        return features.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def map_of(
        self, image: Num[Tensor, "b 3 s s"], content_hw: Int64[Tensor, "b 2"]
    ) -> Float[Tensor, "b c g g"]:
        """Features of whole photos of `image_size` pixels, at the teacher's own grid.

        Args:
            image: As laid out by `geometry.Resize` under SAM's rule, values 0..255.
            content_hw: The part of each frame that is photo.
        """
        parts = zip(image.split(self.at_once), content_hw.split(self.at_once), strict=True)
        return torch.cat(
            [self._encode(self.pixel_norm(some, strip_prefix)) for some, strip_prefix in parts]
        )

    def _encode(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        with torch.autocast(pixels.device.type, enabled=False):  # its precision is its own
            pixels = pixels.to(self.dtype)
            if isinstance(self.encoder, SamImageEncoder) and self.output == "trunk":
                return self.encoder.trunk_features(pixels)
            features: Tensor = self.encoder(pixels)
            return features


def feature_width(config: TeacherConfig) -> int:
    """Channels of the target features of kinds `sam` and `timm`, without building the teacher."""
    if config.kind == "timm":
        return TimmPatches.width_of(config.timm_name)
    return config.encoder.neck_channels if config.output == "neck" else config.encoder.width


def _sam_encoder(config: TeacherConfig) -> SamImageEncoder:
    encoder = SamImageEncoder(config.encoder)
    if config.weights is None:
        _randomise(encoder)
    else:
        state = strip_prefix(read_weights(config.weights).state, "image_encoder.")
        load_strictly(encoder, state, config.weights)
    return encoder


def _timm_encoder(config: TeacherConfig) -> TimmPatches:
    encoder = TimmPatches(config.timm_name, config.image_size)
    if config.weights is not None:
        encoder.load(config.weights)
    return encoder


def _randomise(encoder: SamImageEncoder) -> None:
    """Spread out what timm starts at zero, so that the random teacher looks at positions too."""
    for name, parameter in encoder.named_parameters():
        if name.endswith(("rel_pos_h", "rel_pos_w")):
            nn.init.normal_(parameter, std=0.1)
        elif name.endswith("pos_embed"):
            nn.init.normal_(parameter, std=0.02)
