"""The neck: from the trunk's width to the decoder's channels (SAM, appendix A; ViTDet)."""

from torch import nn

from efficientsam_pl.models.layers import LayerNorm2d


def neck(width: int, channels: int) -> nn.Sequential:
    """Build a 1x1 and a 3x3 convolution without biases, each followed by a norm over channels.

    Maps [b, width, h, w] to [b, channels, h, w].
    """
    return nn.Sequential(
        nn.Conv2d(width, channels, kernel_size=1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(channels),
    )
