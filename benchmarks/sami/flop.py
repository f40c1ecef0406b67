"""FLOPs of SAMI's parts for one image, by formulas.

A product of [n, a] and [a, b] counts 2 n a b. Norms, softmax, GELU, positions and the resizing of
images are ignored: below 1 %. Queries, keys and values of the first block's masked tokens count for
each image, as in the paper, though a batch shares them: 2 % of S. Axes: n tokens, v visible ones, c
the width.
"""

from efficientsam_pl.models.config import EncoderConfig, SamiConfig


def step_flop(config: SamiConfig, target_width: int) -> int:
    """FLOPs of a training step; the backward pass costs two forward passes."""
    return 3 * student_flop(config, target_width)


def student_flop(config: SamiConfig, target_width: int) -> int:
    """FLOPs of the student's forward pass: encoder on the visible tokens, decoder, head."""
    student, width = config.student, config.decoder_width
    n, visible = student.grid() ** 2, config.visible_tokens()
    seen = visible + int(student.class_token)
    decoder = {"cross_attention": _cross_block, "self_attention": _self_block}[config.decoder]
    return (
        2 * visible * 3 * student.patch_size**2 * student.width
        + student.depth * _vit_block(seen, student.width)
        + 2 * visible * student.width * width
        + config.decoder_depth * decoder(n, visible, width)
        + 2 * n * width * target_width
    )


def mae_flop(config: SamiConfig) -> int:
    """FLOPs of a forward pass of MAE's model, with encoder and decoder of the student's size.

    It embeds all patches, both its parts have a class token, and its target is pixels.
    """
    student, width = config.student, config.decoder_width
    n, visible, patch = student.grid() ** 2, config.visible_tokens(), 3 * student.patch_size**2
    return (
        2 * n * patch * student.width
        + student.depth * _vit_block(visible + 1, student.width)
        + 2 * (visible + 1) * student.width * width
        + config.decoder_depth * _vit_block(n + 1, width)
        + 2 * (n + 1) * width * patch
    )


def teacher_flop(config: EncoderConfig, image_size: int) -> int:
    """FLOPs of a forward pass of SAM's encoder with neck, on a square image.

    A block with windows pads the image to whole windows before attention and projections. The
    relative positions of a query of c channels cost its window's rows and columns.
    """
    grid, c, out = image_size // config.patch_size, config.width, config.neck_channels
    n = grid**2
    total = 2 * n * 3 * config.patch_size**2 * c + 2 * n * (c * out + 9 * out**2)
    for block in range(config.depth):
        side = grid if block in config.global_blocks else config.window
        padded = (-(-grid // side) * side) ** 2
        total += 2 * padded * 4 * c**2 + 2 * n * 8 * c**2  # query, key, value, projection; MLP
        total += 2 * padded * (2 * side**2 + 2 * side) * c
    return total


def _vit_block(tokens: int, c: int) -> int:
    return 2 * tokens * 12 * c**2 + 2 * 2 * tokens**2 * c


def _self_block(n: int, _: int, c: int) -> int:
    return _vit_block(n, c)


def _cross_block(n: int, visible: int, c: int) -> int:
    """FLOPs of query, projection and MLP of the masked tokens, keys and values of all."""
    masked = n - visible
    return 2 * masked * 10 * c**2 + 2 * n * 2 * c**2 + 2 * 2 * masked * n * c
