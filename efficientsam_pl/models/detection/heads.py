"""The heads of Mask R-CNN on pooled regions (detectron2, ViTDet configs).

Axes: r regions, c channels, p places a side, k classes.
"""

import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64
from torch import Tensor, nn

from efficientsam_pl.models.layers import LayerNorm2d

_CONVOLUTIONS = 4
_CLASS_STD, _BOX_STD, _MASK_STD = 0.01, 0.001, 0.001  # of the last layers, at initialisation


class NormedConvolutions(nn.Sequential):
    """Four times a 3x3 convolution, a norm over channels and ReLU."""

    def __init__(self, channels: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(_CONVOLUTIONS):
            convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            _he_normal(convolution)
            layers += [convolution, LayerNorm2d(channels), nn.ReLU()]
        super().__init__(*layers)


class BoxHead(nn.Module):
    """Class logits, background last, and the box of each class, as deltas."""

    def __init__(self, channels: int, side: int, width: int, classes: int) -> None:
        super().__init__()
        self.convolutions = NormedConvolutions(channels)
        self.fc1 = nn.Linear(channels * side**2, width)
        self.cls_score = nn.Linear(width, classes + 1)
        self.bbox_pred = nn.Linear(width, 4 * classes)
        nn.init.kaiming_uniform_(self.fc1.weight, a=1)
        nn.init.normal_(self.cls_score.weight, std=_CLASS_STD)
        nn.init.normal_(self.bbox_pred.weight, std=_BOX_STD)
        for layer in (self.fc1, self.cls_score, self.bbox_pred):
            nn.init.zeros_(layer.bias)

    def forward(
        self, pooled: Float[Tensor, "r c p p"]
    ) -> tuple[Float[Tensor, "r k1"], Float[Tensor, "r k 4"]]:
        """Return class logits and deltas, in float32."""
        hidden = F.relu(self.fc1(self.convolutions(pooled).flatten(1)))
        deltas: Tensor = self.bbox_pred(hidden).float()
        return self.cls_score(hidden).float(), deltas.unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """Mask logits at twice the pooled size."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.convolutions = NormedConvolutions(channels)
        self.deconv = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.predictor = nn.Conv2d(channels, classes, 1)
        _he_normal(self.deconv)
        nn.init.normal_(self.predictor.weight, std=_MASK_STD)
        for layer in (self.deconv, self.predictor):
            assert layer.bias is not None, "they have biases"
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Float[Tensor, "r c p p"]) -> Float[Tensor, "r k m m"]:
        """Return the logits of all classes, in float32."""
        logits: Tensor = self.predictor(self._features(pooled))
        return logits.float()

    def of_classes(
        self, pooled: Float[Tensor, "r c p p"], classes: Int64[Tensor, "r"]
    ) -> Float[Tensor, "r m m"]:
        """Return the logits of one class a region: the others, 79 of COCO's 80, are left out."""
        features = self._features(pooled)
        assert self.predictor.bias is not None, "it has a bias"
        weights = self.predictor.weight[classes].flatten(1)[:, None].to(features.dtype)
        products = (weights @ features.flatten(2)).float()[:, 0].unflatten(1, features.shape[-2:])
        logits: Tensor = products + self.predictor.bias[classes][:, None, None]
        return logits

    def _features(self, pooled: Float[Tensor, "r c p p"]) -> Float[Tensor, "r c m m"]:
        return F.relu(self.deconv(self.convolutions(pooled)))


def _he_normal(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Initialise as detectron2 (c2_msra_fill)."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
