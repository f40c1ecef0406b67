"""A semantic segmenter: a plain ViT, a feature pyramid, and Mask2Former's head.

Axes: b images, h w pixels, c channels, d blocks, q queries, k classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from efficientsam_pl.models.classifier import ClassifierViT
from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.detection.pyramid import SimpleFeaturePyramid
from efficientsam_pl.models.drop_path import branch_scales
from efficientsam_pl.models.segmenter import PixelNorm
from efficientsam_pl.models.semantic.config import SemanticConfig
from efficientsam_pl.models.semantic.mask_decoder import MaskTransformerDecoder, SegmentLogits
from efficientsam_pl.models.semantic.pixel_decoder import PixelDecoder
from efficientsam_pl.structures import Region


class SemanticEncoder(nn.Module):
    """The backbone, under the names that encoders have in this project's files."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.trunk = ClassifierViT(config)


class MaskHead(nn.Module):
    """Mask2Former's two decoders."""

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.pixel_decoder = PixelDecoder(config.feature_channels, config.head)
        self.predictor = MaskTransformerDecoder(config.classes, config.head)

    def forward(self, pyramid: Sequence[Float[Tensor, "b c _ _"]]) -> list[SegmentLogits]:
        """Predict from maps of strides 4, 8, 16 and 32."""
        predictions: list[SegmentLogits] = self.predictor(self.pixel_decoder(pyramid))
        return predictions


class SemanticSegmenter(nn.Module):
    """Maps images to masks with classes, and these to a score of every class for every pixel."""

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.config = config
        self.pixel_norm = PixelNorm(config.pixel_mean, config.pixel_std)
        self.image_encoder = SemanticEncoder(config.vit)
        self.pyramid = SimpleFeaturePyramid(config.vit.width, config.feature_channels)
        self.head = MaskHead(config)

    def forward(
        self, image: Num[Tensor, "b 3 h w"], sample_key: Int64[Tensor, "b"] | None = None
    ) -> list[SegmentLogits]:
        """Predict queries' classes and masks for images with values 0..255.

        Args:
            image: Both sides multiples of 32.
            sample_key: Keys of the draws of drop path, which is off without them and in eval mode.

        Returns:
            The predictions before the decoder's first layer and after each; masks at a quarter of
            the image's sides.
        """
        pyramid = self.features(self.pixel_norm(image), sample_key)
        predictions: list[SegmentLogits] = self.head(pyramid)
        return predictions

    def features(
        self, pixels: Float[Tensor, "b 3 h w"], sample_key: Int64[Tensor, "b"] | None = None
    ) -> tuple[Float[Tensor, "b c _ _"], ...]:
        """Compute the maps of strides 4, 8, 16 and 32 of normalised images."""
        config, scales = self.config, None
        if self.training and config.drop_path and sample_key is not None:
            scales = branch_scales(sample_key, config.drop_path, config.vit.depth)
        grid = [side // config.vit.patch_size for side in pixels.shape[-2:]]
        used, first = config.used_blocks(), 1 if config.vit.class_token else 0
        outputs = self.image_encoder.trunk.outputs(pixels, scales, used)
        maps = [
            outputs[block][:, first:].transpose(1, 2).unflatten(2, tuple(grid)) for block in used
        ]
        levels = self.pyramid.levels
        return tuple(
            level(features)
            for level, features in zip(levels, maps * (len(levels) // len(maps)), strict=True)
        )

    @torch.no_grad()
    def segment(self, image: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h w"]:
        """Score every class at every pixel of images whose sides are multiples of 32."""
        return class_scores(self(image)[-1], image.shape[-2:])

    def blocks(self) -> list[nn.Module]:
        """Blocks of the backbone, which are recomputed, compiled and sharded one by one."""
        return list(self.image_encoder.trunk.blocks)

    def regions(self) -> list[Region]:
        """List what is compiled as a whole where no block is sharded."""
        return [Region(self)]


def class_scores(
    prediction: SegmentLogits, image_hw: Sequence[int]
) -> Float[Tensor, "b k {image_hw[0]} {image_hw[1]}"]:
    """Sum the queries' masks, at the image's size, by their classes' probabilities.

    Source:
        Mask2Former, maskformer_model.py, semantic_inference.
    """
    masks = F.interpolate(prediction.masks.float(), size=tuple(image_hw), mode="bilinear")
    probs = prediction.classes.float().softmax(-1)[..., :-1]
    return torch.einsum("bqk,bqhw->bkhw", probs, masks.sigmoid())
