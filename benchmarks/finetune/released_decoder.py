"""Decoding as in the released code, with our weights: everything is repeated for each prompt."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.models.two_way import Attention, TwoWayBlock
from efficientsam_pl.structures import Prediction, Prompts


class ReleasedSegmenter(Segmenter):
    """A segmenter of EfficientSAM's layout that decodes as the released code does."""

    def decode(self, features: Tensor, prompts: Prompts) -> Prediction:
        """Decode as `Segmenter.decode` does."""
        return released_decode(self, features, prompts)


def released_decode(model: Segmenter, features: Tensor, prompts: Prompts) -> Prediction:
    """Decode with features and positions repeated for all prompts, as one batch.

    Every attention projects all image tokens of every prompt and materialises the whole softmax.
    """
    decoder = model.mask_decoder
    tokens, dense = model.prompt_encoder(prompts)
    assert dense is None, "the released EfficientSAM takes no masks"
    b, q = tokens.shape[:2]
    token_position = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([token_position.expand(b * q, -1, -1), tokens.flatten(0, 1)], dim=1)
    tiled = torch.repeat_interleave(features, q, dim=0)
    position = torch.repeat_interleave(model.prompt_encoder.dense_position(), b * q, dim=0)
    image, place = (x.flatten(2).transpose(1, 2) for x in (tiled, position))
    queries, last = tokens, decoder.transformer.final_attn_token_to_image
    for block in decoder.transformer.layers:
        assert isinstance(block, TwoWayBlock)
        queries, image = _block(block, queries, image, tokens, place)
    queries = queries + _attention(last, queries + tokens, image + place, image)
    queries = decoder.transformer.norm_final_attn(queries)
    pixels = decoder.upscaling(image.transpose(1, 2).view_as(tiled))
    kernels = torch.stack(
        [head(queries[:, 1 + i]) for i, head in enumerate(decoder.hypernetworks)], dim=1
    )
    logits = (kernels @ pixels.flatten(2)).unflatten(2, pixels.shape[-2:])
    return Prediction(
        logits.unflatten(0, (b, q)), decoder.iou_head(queries[:, 0]).unflatten(0, (b, q))
    )


def _block(
    block: TwoWayBlock, tokens: Tensor, image: Tensor, token_position: Tensor, place: Tensor
) -> tuple[Tensor, Tensor]:
    placed = tokens if block.first else tokens + token_position
    tokens = block.norm1(placed + _attention(block.self_attn, placed, placed, placed))
    looked = _attention(
        block.cross_attn_token_to_image, tokens + token_position, image + place, image
    )
    tokens = block.norm2(tokens + looked)
    tokens = block.norm3(tokens + block.mlp(tokens))
    answered = _attention(
        block.cross_attn_image_to_token, image + place, tokens + token_position, tokens
    )
    return tokens, block.norm4(image + answered)


def _attention(module: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (
        F.linear(x, projection.weight, projection.bias)
        .unflatten(-1, (module.heads, -1))
        .transpose(1, 2)
        for projection, x in ((module.q_proj, q), (module.k_proj, k), (module.v_proj, v))
    )
    weights = ((q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5).softmax(dim=-1)
    attended: Tensor = module.out_proj((weights @ v).transpose(1, 2).flatten(2))
    return attended
