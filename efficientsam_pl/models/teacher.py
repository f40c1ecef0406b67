"""The teacher: a frozen image encoder whose features are resized to the student's grid."""

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from efficientsam_pl.models.config import NAMED, TeacherConfig
from efficientsam_pl.models.segmenter import PixelNorm
from efficientsam_pl.models.timm_teacher import (
    TimmTeacher,
    build_timm_teacher,
    timm_feature_width,
)
from efficientsam_pl.models.vit import SamImageEncoder
from efficientsam_pl.models.weights import load_strictly, read_weights, strip_prefix

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class FrozenTeacher(nn.Module):
    """Frozen encoder that maps images to target features; always in eval mode, without gradient.

    Without a weights file it is initialised at random from a seed: for trials only.
    """

    def __init__(self, config: TeacherConfig, grid: int) -> None:
        """Build the teacher on the CPU.

        Args:
            config: Teacher config of kind `sam` or `timm`.
            grid: Tokens per side of the returned features.

        Raises:
            WeightsError: The file cannot be read or belongs to another model.
        """
        super().__init__()
        self.width = feature_width(config)
        with torch.random.fork_rng(devices=[]):  # built on the CPU even if a GPU is present
            torch.default_generator.manual_seed(config.seed)
            self.encoder = _timm_encoder(config) if config.kind == "timm" else _sam_encoder(config)
        mean, std = (
            (self.encoder.pixel_mean, self.encoder.pixel_std)
            if isinstance(self.encoder, TimmTeacher)
            else (NAMED["sam_vit_h"].pixel_mean, NAMED["sam_vit_h"].pixel_std)
        )
        self.pixel_norm = PixelNorm(mean, std)
        self.image_size, self.output, self.grid = config.image_size, config.output, grid
        self.chunk_size, self.overlap = config.chunk_size(), config.overlap
        self.dtype = _DTYPES[config.precision]
        self.encoder.to(self.dtype)
        self.requires_grad_(False)
        self.eval()

    def blocks(self) -> list[nn.Module]:
        """List the encoder's blocks: the units of compile and FSDP."""
        return list(cast(nn.ModuleList, self.encoder.trunk.blocks))  # of Hiera a Sequential

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stay in eval mode, whatever mode the student is put in."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Num[Tensor, "b 3 s s"]) -> Float[Tensor, "b n c"]:
        """Compute features of images (values 0..255), row-major over the student's grid.

        If `image_size` differs from the input's, the images are resized first (bicubic) and the
        features are averaged down to the grid. Runs in chunks of `chunk_size` images to bound
        memory.
        """
        return torch.cat([self._grid_features(chunk) for chunk in image.split(self.chunk_size)])

    def _grid_features(self, image: Num[Tensor, "b 3 s s"]) -> Float[Tensor, "b n c"]:
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
    def feature_map(
        self, image: Num[Tensor, "b 3 s s"], content_hw: Int64[Tensor, "b 2"]
    ) -> Float[Tensor, "b c g g"]:
        """Compute features of whole images of `image_size` pixels, at the teacher's own grid.

        Args:
            image: Padded by `geometry.Resize` as in SAM, values 0..255.
            content_hw: Height and width of the image inside each padded frame.
        """
        chunks = zip(image.split(self.chunk_size), content_hw.split(self.chunk_size), strict=True)
        return torch.cat(
            [self._encode(self.pixel_norm(chunk, content)) for chunk, content in chunks]
        )

    def _encode(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        with torch.autocast(pixels.device.type, enabled=False):  # precision is set by the config
            pixels = pixels.to(self.dtype)
            if isinstance(self.encoder, SamImageEncoder) and self.output == "trunk":
                return self.encoder.trunk_features(pixels)
            features: Tensor = self.encoder(pixels)
            return features


def feature_width(config: TeacherConfig) -> int:
    """Return the channels of a `sam` or `timm` teacher's features without building it."""
    if config.kind == "timm":
        return timm_feature_width(config.timm_name)
    return config.encoder.neck_channels if config.output == "neck" else config.encoder.width


def _sam_encoder(config: TeacherConfig) -> SamImageEncoder:
    encoder = SamImageEncoder(config.encoder)
    if config.weights is None:
        _randomise(encoder)
    else:
        state = strip_prefix(read_weights(config.weights).state, "image_encoder.")
        load_strictly(encoder, state, config.weights)
    return encoder


def _timm_encoder(config: TeacherConfig) -> TimmTeacher:
    encoder = build_timm_teacher(config.timm_name, config.image_size)
    if config.weights is not None:
        encoder.load(config.weights)
    return encoder


def _randomise(encoder: SamImageEncoder) -> None:
    """Draw the positions that timm initialises to zero, so that features depend on them."""
    for name, parameter in encoder.named_parameters():
        if name.endswith(("rel_pos_h", "rel_pos_w")):
            nn.init.normal_(parameter, std=0.1)
        elif name.endswith("pos_embed"):
            nn.init.normal_(parameter, std=0.02)
