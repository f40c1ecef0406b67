"""Plain feature distillation: a student sees the whole image, and its neck predicts SAM's features.

The way of MobileSAM (Zhang et al. 2023, section 3) and EfficientViT-SAM (Zhang et al. 2024, section
3.2): no token is masked and no decoder stands behind the encoder. SAMI's control.

Axes: b images, n tokens of the grid, s pixels a side, c channels of the neck.
"""

import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from efficientsam_pl.models.cast_weights import call_with_cast_weights
from efficientsam_pl.models.config import NAMED, SamiConfig
from efficientsam_pl.models.masking import TokenSplit
from efficientsam_pl.models.position_encoding import sine_positions
from efficientsam_pl.models.segmenter import PixelNorm
from efficientsam_pl.models.vit import ImageEncoder
from efficientsam_pl.models.weights_source import WeightsError
from efficientsam_pl.structures import Region


class Distillation(nn.Module):
    """An image encoder whose output is compared with the target; used as `models.sami.Sami` is."""

    def __init__(self, config: SamiConfig, target_width: int) -> None:
        """Build the student.

        Raises:
            WeightsError: The target has other channels than the student's neck.
        """
        super().__init__()
        student = config.student
        if target_width != student.neck_channels:
            raise WeightsError(
                f"sami.student.neck_channels={student.neck_channels} must be the "
                f"{target_width} channels of the teacher's features with sami.decoder=none"
            )
        self.config = config
        self.pixel_norm = PixelNorm(NAMED["sam_vit_h"].pixel_mean, NAMED["sam_vit_h"].pixel_std)
        self.image_encoder = ImageEncoder(student)
        if config.positions == "fixed":
            positions = self.image_encoder.trunk.pos_embed
            with torch.no_grad():
                positions[:, 1:] = sine_positions(student.position_grid, student.width)
            positions.requires_grad_(False)

    def forward(
        self, image: Num[Tensor, "b 3 s s"], sample_key: Int64[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b n c"], TokenSplit]:
        """Predict the target of every token; all of them are visible.

        Args:
            image: Images at the student's size, values 0..255.
            sample_key: One number an image, from which nothing is drawn.
        """
        encoded, split = self.encode(image, sample_key)
        return self.decode(encoded, split), split

    def encode(
        self, image: Num[Tensor, "b 3 s s"], sample_key: Int64[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b n c"], TokenSplit]:
        """Encode the image, neck included; tokens are row-major over the grid."""
        features = call_with_cast_weights(self.image_encoder, self.pixel_norm(image))
        tokens = features.flatten(2).transpose(1, 2)
        places = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        return tokens, TokenSplit(places, places[:, :0])

    def decode(self, encoded: Float[Tensor, "b n c"], split: TokenSplit) -> Float[Tensor, "b n c"]:
        """Return the encoded tokens, which are the prediction."""
        return encoded

    def regions(self) -> list[Region]:
        """List what is compiled as a whole where no block is sharded."""
        return [Region(self, "encode", runs_blocks=True)]

    def blocks(self) -> list[nn.Module]:
        """List the blocks: the units of compile, FSDP and checkpointing."""
        return list(self.image_encoder.trunk.blocks)
