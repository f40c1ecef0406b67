"""The simple feature pyramid: all levels from the backbone's last map (ViTDet, section 3).

Axes: b images, c channels of the backbone, k channels of the pyramid, h w places at stride 16.
"""

import re

from jaxtyping import Float
from torch import Tensor, nn

from efficientsam_pl.models.layers import LayerNorm2d
from efficientsam_pl.models.neck import neck

_RESAMPLING = (4, 1, 0, 1)  # layers before the convolutions of p2..p5


class SimpleFeaturePyramid(nn.Module):
    """Levels p2..p6, at strides 4 to 64, of one map at stride 16.

    `levels` are p2..p5: what changes the resolution, then a 1x1 and a 3x3 convolution with norms.
    p6 is every second place of p5.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.levels = nn.ModuleList(
            nn.Sequential(*resampling, *neck(out, channels))
            for resampling, out in (
                (
                    [
                        nn.ConvTranspose2d(width, half, 2, stride=2),
                        LayerNorm2d(half),
                        nn.GELU(),
                        nn.ConvTranspose2d(half, quarter, 2, stride=2),
                    ],
                    quarter,
                ),
                ([nn.ConvTranspose2d(width, half, 2, stride=2)], half),
                ([], width),
                ([nn.MaxPool2d(2)], width),
            )
        )

    def forward(self, features: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b k _ _"]]:
        """Compute the maps of all levels, the finest first."""
        maps: list[Tensor] = [level(features) for level in self.levels]
        return [*maps, maps[-1][:, :, ::2, ::2]]


def detectron2_level_name(name: str) -> str:
    """Rename a parameter of the pyramid as detectron2: levels.0.4.weight is simfp_2.4.weight.

    Its convolutions contain their norms: levels.0.5.weight is simfp_2.4.norm.weight.
    """
    match = re.fullmatch(r"levels\.(\d+)\.(\d+)\.(\w+)", name)
    assert match is not None, f"{name} is a parameter of the pyramid"
    level, layer = int(match[1]), int(match[2])
    before = _RESAMPLING[level]
    convolution, offset = divmod(max(layer - before, 0), 2)
    place = layer if layer < before else before + convolution
    return f"simfp_{level + 2}.{place}." + ("norm." if offset else "") + match[3]
