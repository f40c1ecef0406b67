"""Compute the bytes that a step must at least read and write, by formulas.

A floor under the counts of `benchmarks.step_counts`, in bf16. It allows any fusion that needs no
value before it is known: a matrix product or an attention reads its inputs once and writes its
output, its two gradients are one kernel, and norms, activations, residuals and biases cost nothing.
Of the mask decoder only what a prompt has of its own counts, its image tokens and its logits:
whatever follows a sum over all of them has to read them again.

Axes of the formulas: n tokens, v visible ones, m masked ones, c the width.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from benchmarks.sami.timed_step import CHANNELS, STUDENTS
from benchmarks.step_counts.recipes import RECIPES, SAMI, images_of
from efficientsam_pl.models.config import EncoderConfig, SamiConfig
from efficientsam_pl.models.registry import segmenter_config
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.segmenter import Segmenter

BF16, FLOAT32 = 2, 4  # bytes
# Forward: qkv 4, attention 4, projection and residual 3, MLP 5 + 6. Backward: MLP 9 + 7,
# projection 3, attention 8, qkv 6; the gradient of a residual is read where it is added
_BLOCK = 22 + 33  # times n c
# Forward: query 2 m, keys and values v + m + 2 n, attention 2 m + 2 n, projection and MLP as above.
# Backward: MLP and projection as above, attention 4 m + 4 n, query, keys and values 4 m + 2 n, and
# those of the visible tokens, which all blocks add up, 3 v
_CROSS_BLOCK = {"m": 45, "n": 11, "v": 3}
# Weights read and written by the optimizer, as are two moments; gradients written, and read for
# their norm and for the optimizer
_FLOAT32_A_PARAMETER = 2 + 4 + 3
_BF16_A_PARAMETER = 1 + 2  # written once, read by the forward and the backward pass
# Image tokens after each of two blocks: forward written and read. Backward: read for the sums of
# upscaling and norm, again with those before for the gradient that is then written, and both again
# for the sums of the first block
_OWN_TOKENS = 4 + 1 + 3 + 2
# With a mask prompt those before the first block, too: forward written and read; backward read with
# the others, and their gradient written and read with them
_OWN_TOKENS_OF_MASK_PROMPTS = 2 + 1 + 1 + 2
# Written; read for the loss's sums, again for its gradient, which is written and read for the sums
# of the upscaling and for the tokens' gradient
_LOGITS = 1 + 1 + 2 + 2
_INTERACTIVE_ROUNDS, _ROUNDS, _MASKS, _TOKENS = 11, 6, 32, 4


def block_bytes(tokens: int, width: int) -> int:
    """Bytes of a transformer block, forward and backward."""
    return BF16 * _BLOCK * tokens * width


def cross_block_bytes(masked: int, visible: int, width: int) -> int:
    """Bytes of a block in which masked tokens attend to visible and masked ones."""
    sizes = {"m": masked, "n": masked + visible, "v": visible}
    return BF16 * width * sum(factor * sizes[axis] for axis, factor in _CROSS_BLOCK.items())


def layer_bytes(tokens: int, inside: int, outside: int) -> int:
    """Bytes of a linear layer: input read twice, its gradient written; the output's reversed."""
    return BF16 * tokens * (3 * inside + 2 * outside)


def parameter_bytes(parameters: int) -> int:
    """Bytes of weights, gradients and AdamW's moments."""
    return parameters * (FLOAT32 * _FLOAT32_A_PARAMETER + BF16 * _BF16_A_PARAMETER)


def round_bytes(image_tokens: int, channels: int, mask_prompt: bool, tokens: int) -> int:
    """Bytes that a prompt has of its own in a round.

    Args:
        image_tokens: Tokens of an image.
        channels: Of a token.
        mask_prompt: Whether the previous mask is a prompt, so that no block is shared.
        tokens: Mask tokens whose logits have a loss; a token of the image has 16 logits of each.
    """
    per_channel = _OWN_TOKENS + (_OWN_TOKENS_OF_MASK_PROMPTS if mask_prompt else 0)
    return BF16 * image_tokens * (per_channel * channels + _LOGITS * 16 * tokens)


def sami_floor(config: SamiConfig, images: int) -> dict[str, float]:
    """Bytes of a pretraining step by part."""
    student, width = config.student, config.decoder_width
    n, visible = student.grid() ** 2, config.visible_tokens()
    patches = layer_bytes(visible, 3 * student.patch_size**2, student.width)
    ends = layer_bytes(visible, student.width, width) + layer_bytes(n, width, CHANNELS)
    blocks = config.decoder_depth * cross_block_bytes(n - visible, visible, width)
    return {
        "encoder": images * (patches + student.depth * block_bytes(visible, student.width)),
        "decoder": images * (ends + blocks),
        "weights": parameter_bytes(_parameters(lambda: Sami(config, CHANNELS))),
    }


def finetune_floor(model: str, images: int, interactive: bool) -> dict[str, float]:
    """Bytes of a finetuning step by part, with 32 masks an image.

    Args:
        model: A registered name.
        images: Of the step.
        interactive: Eleven rounds, each of which depends on the one before, or six that do not.
    """
    config = segmenter_config(model)
    n, channels = config.encoder.grid() ** 2, config.encoder.neck_channels
    first = round_bytes(n, channels, mask_prompt=False, tokens=_TOKENS)
    if interactive:  # only the single mask is trained after the first round
        later = round_bytes(n, channels, mask_prompt=True, tokens=1)
        rounds = first + (_INTERACTIVE_ROUNDS - 1) * later
    else:
        rounds = _ROUNDS * first
    return {
        "encoder": images * _encoder_bytes(config.encoder),
        "decoder": images * _MASKS * rounds,
        "weights": parameter_bytes(_parameters(lambda: Segmenter(config))),
    }


def floors() -> dict[str, dict[str, float]]:
    """Bytes of each shipped recipe's step by part; finetuning is of Ti, pretraining of S."""
    each, interactive = (r for r in RECIPES if r != SAMI)
    name = "efficient_sam_ti"
    return {
        each: finetune_floor(name, images_of(each), interactive=False),
        interactive: finetune_floor(f"{name}_interactive", images_of(interactive), True),
        SAMI: sami_floor(STUDENTS["S"], images_of(SAMI)),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each recipe."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_counts.floor")
    parser.description = (__doc__ or "").splitlines()[0]
    parser.parse_args(argv)
    for recipe, parts in floors().items():
        print(f"{recipe}: {_described(parts)}")
    return 0


def _described(parts: Mapping[str, float]) -> str:
    listed = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items())
    return f"{sum(parts.values()) / 1e9:.1f} GB ({listed})"


def _encoder_bytes(encoder: EncoderConfig) -> int:
    n, width, channels = encoder.grid() ** 2, encoder.width, encoder.neck_channels
    ends = layer_bytes(n, 3 * encoder.patch_size**2, width) + layer_bytes(n, width, channels)
    return ends + layer_bytes(n, channels, channels) + encoder.depth * block_bytes(n, width)


def _parameters(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters() if p.requires_grad)


if __name__ == "__main__":
    sys.exit(main())
