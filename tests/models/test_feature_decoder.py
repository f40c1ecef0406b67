"""The decoders, beside plain loops over tokens and heads."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from efficientsam_pl.keyed_random import sample_key
from efficientsam_pl.models.config import EncoderConfig, SamiConfig
from efficientsam_pl.models.feature_decoder import (
    CrossAttentionBlock,
    CrossAttentionDecoder,
    SelfAttentionDecoder,
    build_decoder,
)
from efficientsam_pl.models.masking import TokenSplit, random_split
from efficientsam_pl.models.position_encoding import positions_at

CROSS = SamiConfig(
    student=EncoderConfig(width=24, depth=2, heads=2, image_size=64, position_grid=4),
    decoder_depth=2,
    decoder_width=32,
    decoder_heads=4,
)
SELF = replace(CROSS, decoder="self_attention")
both = pytest.mark.parametrize("config", [CROSS, SELF], ids=["cross", "self"])


def split_of(*samples: str) -> TokenSplit:
    return random_split(torch.tensor([sample_key(0, 0, sample) for sample in samples]), 16, 4)


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():  # zeros and ones would hide errors
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return module.eval()


def plain_norm(token: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = token - token.mean()
    scaled = centred / (centred.square().mean() + 1e-6).sqrt()
    return scaled * norm.weight + norm.bias


@torch.inference_mode()
def test_block_is_a_plain_loop_over_tokens_and_heads() -> None:
    block = CrossAttentionBlock(8, 2)
    randomised(block)
    masked, visible = torch.randn(3, 8), torch.randn(2, 8)
    queries = [plain_norm(token, block.norm_attention) for token in masked]
    sources = [block.key_value(token) for token in [*visible, *queries]]
    expected = []
    for token, normed in zip(masked, queries, strict=True):
        query, heads = block.query(normed), []
        for part in (slice(0, 4), slice(4, 8)):
            scores = [float(query[part] @ kv[:8][part]) / math.sqrt(4) for kv in sources]
            weights = torch.tensor(scores).softmax(0)
            heads.append(
                sum(w * kv[8:][part] for w, kv in zip(weights, sources, strict=True))  # type: ignore[misc]
            )
        attended = token + block.out(torch.cat(heads))  # type: ignore[arg-type]
        expected.append(attended + block.mlp(plain_norm(attended, block.norm_mlp)))
    actual = block(masked[None], visible[None])[0]
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_cross_attention_merges_both_kinds_of_tokens_in_image_order() -> None:
    """If blocks add nothing, each token's prediction is the head of its normalised embedding."""
    decoder = CrossAttentionDecoder(CROSS, 5)
    randomised(decoder)
    for block in decoder.blocks:
        assert isinstance(block, CrossAttentionBlock)
        for layer in (block.out, block.mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
    encoded, split = torch.randn(1, 4, 24), split_of("a")
    actual = decoder(encoded, split)[0]
    for row, place in enumerate(split.visible[0].tolist()):
        token = decoder.embed(encoded[0, row]) + decoder.position[0, place]
        expected = decoder.head(plain_norm(token, decoder.norm_visible))
        torch.testing.assert_close(actual[place], expected, rtol=0, atol=1e-5)
    for place in split.masked[0].tolist():
        token = decoder.mask_token[0, 0] + decoder.position[0, place]
        expected = decoder.head(plain_norm(token, decoder.norm_masked))
        torch.testing.assert_close(actual[place], expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_self_attention_is_maes_sequence_filled_place_by_place() -> None:
    decoder = SelfAttentionDecoder(SELF, 5)
    randomised(decoder)
    encoded, split = torch.randn(1, 4, 24), split_of("a")
    tokens = decoder.mask_token[0].repeat(16, 1)
    for row, place in enumerate(split.visible[0].tolist()):
        tokens[place] = decoder.embed(encoded[0, row])
    sequence = (tokens + decoder.position[0])[None]
    for block in decoder.blocks:
        sequence = block(sequence)
    expected = torch.stack([decoder.head(plain_norm(token, decoder.norm)) for token in sequence[0]])
    torch.testing.assert_close(decoder(encoded, split)[0], expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_the_first_block_projects_tokens_of_all_images_at_once_to_the_same() -> None:
    block = CrossAttentionBlock(8, 2)
    randomised(block)
    places, visible, split = torch.randn(1, 16, 8), torch.randn(2, 4, 8), split_of("a", "b")
    masked = torch.stack([places[0, chosen] for chosen in split.masked])
    shared = block(places, visible, *split.order_and_inverse())
    torch.testing.assert_close(shared, block(masked, visible), rtol=1e-5, atol=1e-5)


@both
@torch.inference_mode()
def test_a_visible_tokens_prediction_depends_on_other_tokens_only_if_updated(
    config: SamiConfig,
) -> None:
    decoder = build_decoder(config, 8).eval()
    encoded, split = torch.randn(1, 4, 24), split_of("a")
    changed = encoded.clone()
    changed[0, 1] += torch.randn(24)
    moved = (decoder(changed, split) - decoder(encoded, split)).abs().amax(2)[0]
    visible = split.visible[0]
    assert moved[visible[1]] > 1e-4
    assert (moved[split.masked[0]] > 1e-5).all()
    assert bool((moved[visible[0]] > 1e-5).item()) == (config.decoder == "self_attention")


@both
@torch.inference_mode()
def test_the_order_in_which_tokens_are_given_does_not_matter(config: SamiConfig) -> None:
    decoder = build_decoder(config, 8)
    randomised(decoder)
    encoded, split = torch.randn(1, 4, 24), split_of("a")
    seen, hidden = torch.tensor([2, 0, 3, 1]), torch.arange(11, -1, -1)
    shuffled = TokenSplit(split.visible[:, seen], split.masked[:, hidden])
    torch.testing.assert_close(
        decoder(encoded[:, seen], shuffled), decoder(encoded, split), rtol=1e-4, atol=1e-4
    )


def test_the_decoders_error_in_half_precision_is_that_of_a_float32_residual_stream() -> None:
    """Tokens in bf16 between blocks: the products, which are in bf16 either way, decide."""
    deep = replace(CROSS, decoder_depth=8, decoder_width=64)
    errors = torch.tensor([half_precision_errors(deep, seed) for seed in range(8)])
    ours, reference = errors.mean(0).tolist()
    assert ours < 1.1 * reference < 0.02  # one draw's ratio is between 0.9 and 1.3


def half_precision_errors(config: SamiConfig, seed: int) -> tuple[float, float]:
    """Relative errors of a decoder's gradients in bf16, and with a float32 residual stream."""
    torch.manual_seed(seed)
    decoder = build_decoder(config, 16)
    assert isinstance(decoder, CrossAttentionDecoder)
    encoded, target = torch.randn(8, 4, 24), torch.randn(8, 16, 16)
    split = split_of(*"abcdefgh")

    def gradients(predict: Callable[[], Tensor], low: bool) -> tuple[Tensor, Tensor]:
        decoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            predicted = predict()
        loss = (predicted.float() - target).square().mean()
        loss.backward()
        flat = [p.grad.flatten() for p in decoder.parameters() if p.grad is not None]
        return loss.detach(), torch.cat(flat)

    def in_float32_stream() -> Tensor:
        embedded = decoder.embed(encoded).float() + positions_at(decoder.position, split.visible)
        visible = decoder.norm_visible(embedded)
        masked = decoder.mask_token + positions_at(decoder.position, split.masked)
        for block in decoder.blocks:
            masked = float32_block(block, masked, visible)
        return split.restore(decoder.head(visible), decoder.head(decoder.norm_masked(masked)))

    loss, exact = gradients(lambda: decoder(encoded, split), low=False)
    _, same = gradients(in_float32_stream, low=False)
    torch.testing.assert_close(exact, same, rtol=1e-4, atol=1e-6)
    low_loss, ours = gradients(lambda: decoder(encoded, split), low=True)
    float_loss, reference = gradients(in_float32_stream, low=True)
    assert (low_loss - loss).abs() / loss < 2e-3
    assert (float_loss - loss).abs() / loss < 2e-3
    norm = exact.norm()
    return float((ours - exact).norm() / norm), float((reference - exact).norm() / norm)


def float32_block(block: nn.Module, masked: Tensor, visible: Tensor) -> Tensor:
    """Repeat the block with a GPU's autocast rules: float32 norms and residuals."""
    assert isinstance(block, CrossAttentionBlock)
    queries = block.norm_attention(masked.float()).float()
    k, v = block.key_value(torch.cat([visible, queries], dim=1)).chunk(2, dim=-1)
    split_heads = [x.unflatten(-1, (4, -1)).transpose(1, 2) for x in (block.query(queries), k, v)]
    attended = F.scaled_dot_product_attention(*split_heads).transpose(1, 2).flatten(-2)
    masked = masked.float() + block.out(attended)
    updated: Tensor = masked + block.mlp(block.norm_mlp(masked).float())
    return updated
