"""An image classifier: a plain ViT with pooling, norm and linear head, as MAE finetunes it.

Axes: b images, s pixels a side, n tokens (the class token first, where there is one), c channels,
d blocks, k classes.
"""

from collections.abc import Collection

import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from efficientsam_pl.models.classifier_config import ClassifierConfig
from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.drop_path import branch_scales
from efficientsam_pl.models.segmenter import PixelNorm
from efficientsam_pl.models.vit import PlainViT
from efficientsam_pl.structures import Region

_HEAD_STD = 2e-5  # MAE, main_finetune.py
_NORM_EPS = 1e-6


class ClassifierViT(PlainViT):
    """A plain ViT that returns its class token too."""

    def tokens(
        self, pixels: Float[Tensor, "b 3 s s"], scales: Float[Tensor, "b d 2"] | None
    ) -> Float[Tensor, "b n c"]:
        """Return the last block's tokens.

        Args:
            pixels: Normalised images.
            scales: Those of every block's branches; None: 1.
        """
        last = len(self.blocks) - 1
        return self.outputs(pixels, scales, (last,))[last]

    def outputs(
        self,
        pixels: Float[Tensor, "b 3 h w"],
        scales: Float[Tensor, "b d 2"] | None,
        wanted: Collection[int],
    ) -> dict[int, Float[Tensor, "b n c"]]:
        """Return some blocks' tokens by the blocks' numbers, as `tokens` the last one's."""
        tokens = self._embed_all(pixels)
        if self.cls_token is not None:
            first = self.cls_token + self.pos_embed[:, :1]
            tokens = torch.cat([first.expand(len(tokens), -1, -1), tokens], dim=1)
        outputs = {}
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, None if scales is None else scales[:, number])
            if number in wanted:
                outputs[number] = tokens
        return outputs


class ClassifierEncoder(nn.Module):
    """The backbone, under the names that encoders have in this project's files."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.trunk = ClassifierViT(config)


class Classifier(nn.Module):
    """Maps images to logits of classes.

    `pool=mean`: the mean of the last block's patch tokens, then `fc_norm`, then `head`; a class
    token, where there is one, runs along. `pool=class_token`: `norm`, the class token, `head`.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.pixel_norm = PixelNorm(config.pixel_mean, config.pixel_std)
        self.image_encoder = ClassifierEncoder(config.vit)
        norm = nn.LayerNorm(config.vit.width, eps=_NORM_EPS)
        self.add_module(pooling_norm(config), norm)
        self.head = nn.Linear(config.vit.width, config.classes)
        nn.init.trunc_normal_(self.head.weight, std=_HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, image: Num[Tensor, "b 3 s s"], sample_key: Int64[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b k"]:
        """Classify images with values 0..255.

        Args:
            image: At the model's size.
            sample_key: Keys of the draws of drop path, which is off without them and in eval mode.
        """
        return self.classify(self.pixel_norm(image), sample_key)

    def classify(
        self, pixels: Float[Tensor, "b 3 s s"], sample_key: Int64[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b k"]:
        """Classify normalised images."""
        scales = None
        if self.training and self.config.drop_path and sample_key is not None:
            scales = branch_scales(sample_key, self.config.drop_path, self.config.vit.depth)
        logits: Tensor = self.head(self.pooled(self.image_encoder.trunk.tokens(pixels, scales)))
        return logits

    def pooled(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b c"]:
        """Pool the last block's tokens to the feature that the head sees."""
        norm = self.get_submodule(pooling_norm(self.config))
        if self.config.pool == "class_token":
            feature: Tensor = norm(tokens[:, 0])
            return feature
        first = 1 if self.config.vit.class_token else 0
        mean: Tensor = norm(tokens[:, first:].mean(1))
        return mean

    def blocks(self) -> list[nn.Module]:
        """Blocks of the backbone, which are recomputed, compiled and sharded one by one."""
        return list(self.image_encoder.trunk.blocks)

    def regions(self) -> list[Region]:
        """List what is compiled as a whole where no block is sharded."""
        return [Region(self)]


def pooling_norm(config: ClassifierConfig) -> str:
    """Name the norm before the head; MAE has one for each way of pooling."""
    return "norm" if config.pool == "class_token" else "fc_norm"
