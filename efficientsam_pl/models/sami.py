"""SAMI: a small ViT learns to predict SAM's features from a quarter of the patches (paper, 3.2).

Axes: b images, n tokens of the grid, v visible ones, s pixels a side, c channels.
"""

import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from efficientsam_pl.models.cast_weights import call_with_cast_weights
from efficientsam_pl.models.config import NAMED, SamiConfig
from efficientsam_pl.models.feature_decoder import build_decoder
from efficientsam_pl.models.masking import TokenSplit, random_split
from efficientsam_pl.models.position_encoding import sine_positions
from efficientsam_pl.models.segmenter import PixelNorm
from efficientsam_pl.models.vit import PlainViT
from efficientsam_pl.structures import Region


class Sami(nn.Module):
    """Student encoder over the visible tokens, then a decoder that predicts the target features."""

    def __init__(self, config: SamiConfig, target_width: int) -> None:
        super().__init__()
        self.config = config
        self.pixel_norm = PixelNorm(NAMED["sam_vit_h"].pixel_mean, NAMED["sam_vit_h"].pixel_std)
        self.encoder = PlainViT(config.student)
        if config.positions == "fixed":
            grid, width = config.student.position_grid, config.student.width
            with torch.no_grad():
                self.encoder.pos_embed[:, 1:] = sine_positions(grid, width)
            self.encoder.pos_embed.requires_grad_(False)
        self.encoder_norm = (
            nn.LayerNorm(config.student.width, eps=1e-6)
            if config.encoder_norm == "layer_norm"
            else nn.Identity()
        )
        self.decoder = build_decoder(config, target_width)

    def forward(
        self, image: Num[Tensor, "b 3 s s"], sample_key: Int64[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b n target"], TokenSplit]:
        """Predict the target of every token; also return the visible/masked split.

        Args:
            image: Images at the student's size, values 0..255.
            sample_key: Determines the mask of each image.
        """
        encoded, split = self.encode(image, sample_key)
        return self.decode(encoded, split), split

    def encode(
        self, image: Num[Tensor, "b 3 s s"], sample_key: Int64[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b v c"], TokenSplit]:
        """Split the tokens of each image, and encode the visible ones."""
        split = random_split(
            sample_key, self.config.student.grid() ** 2, self.config.visible_tokens()
        )
        encoded = call_with_cast_weights(self.encoder, self.pixel_norm(image), split.visible)
        return self.encoder_norm(encoded), split

    def decode(
        self, encoded: Float[Tensor, "b v c"], split: TokenSplit
    ) -> Float[Tensor, "b n target"]:
        """Predict the target of every token, in image order."""
        predicted: Tensor = call_with_cast_weights(self.decoder, encoded, split)
        return predicted

    def regions(self) -> list[Region]:
        """List what is compiled as a whole where no block is sharded."""
        return [Region(self, "encode", runs_blocks=True), Region(self, "decode", runs_blocks=True)]

    def blocks(self) -> list[nn.Module]:
        """List the blocks, encoder first: the units of compile, FSDP and checkpointing."""
        return [*self.encoder.blocks, *self.decoder.blocks]
