import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from efficientsam_pl.models.config import EncoderConfig, SamiConfig
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.models.vit import (
    GridBlock,
    ImageEncoder,
    PlainViT,
    SamImageEncoder,
    build_encoder,
)

SMALL = EncoderConfig(
    width=48, depth=3, heads=3, image_size=96, position_grid=4, window=4, global_blocks=(1,)
)
both_kinds = pytest.mark.parametrize("kind", ["vit", "sam_vit"])


def pixels(side: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(4))


def twin(config: EncoderConfig, of: torch.nn.Module) -> ImageEncoder | SamImageEncoder:
    other = build_encoder(config).eval()
    other.load_state_dict(of.state_dict())
    return other


def small(kind: str) -> tuple[EncoderConfig, ImageEncoder | SamImageEncoder]:
    config = replace(SMALL, kind=kind)
    torch.manual_seed(0)
    encoder = build_encoder(config).eval()
    for name, parameter in encoder.named_parameters():
        if "pos" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return config, encoder


@both_kinds
def test_fused_attention_is_the_explicit_one(kind: str) -> None:
    config, fused = small(kind)
    explicit = twin(replace(config, attention="explicit"), fused)
    attentions = [m for m in explicit.modules() if hasattr(m, "fused_attn")]
    assert len(attentions) == config.depth
    assert not any(attention.fused_attn for attention in attentions)
    with torch.inference_mode():
        torch.testing.assert_close(fused(pixels(96)), explicit(pixels(96)), rtol=0, atol=1e-4)


COMPILED = """
import torch
from efficientsam_pl.models.config import EncoderConfig, SamiConfig
from efficientsam_pl.models.vit import build_encoder

torch.set_num_threads(2)
encoder = build_encoder(EncoderConfig(width=48, depth=1, heads=3, position_grid=4))
pixels = torch.randn(1, 3, 96, 96)
with torch.no_grad():
    expected = encoder(pixels)
    actual = torch.compile(encoder, fullgraph=True)(pixels)
torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler"
)
def test_a_compiled_encoder_predicts_the_same_in_one_graph() -> None:
    """Run in a subprocess: the shape checks of the tests cannot be traced."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"},  # no pool for one graph
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@torch.inference_mode()
def test_bf16_stays_within_a_hundredth_of_float32(ti: Segmenter) -> None:
    """Ti with the golden weights under autocast on a CPU.

    Measured: the error's norm is 0.0060 of the features' at 256 and at 512 pixels, 0.03 at most
    where the features have a standard deviation of about 1.
    """
    index = pixels(256)
    expected = ti.image_encoder(index)
    with torch.autocast("cpu", torch.bfloat16):
        actual = ti.image_encoder(index).float()
    error = (actual - expected).norm() / expected.norm()
    assert 0 < error < 0.01


@pytest.mark.parametrize("grid", [[4, 4], [6, 6], [64, 64], [3, 5]])
def test_positions_are_resized_as_released(grid: list[int]) -> None:
    vit = PlainViT(SMALL)
    square = vit.pos_embed[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    torch.testing.assert_close(
        vit.positions(grid), expected.flatten(2).transpose(1, 2), rtol=0, atol=1e-6
    )


WINDOWED = replace(SMALL, global_attention="listed")


def slow_window_attention(attention: nn.Module, grid: Tensor, window: int) -> Tensor:
    """[gh, gw, c] with each window cut out, filled up with zeros and attended by itself."""
    actual = torch.zeros_like(grid)
    for top in range(0, grid.shape[0], window):
        for left in range(0, grid.shape[1], window):
            inside = grid[top : top + window, left : left + window]
            filled = torch.zeros(window, window, grid.shape[2])
            filled[: inside.shape[0], : inside.shape[1]] = inside
            attended = attention(filled.flatten(0, 1)[None])[0].unflatten(0, (window, window))
            actual[top : top + window, left : left + window] = attended[
                : inside.shape[0], : inside.shape[1]
            ]
    return actual


@pytest.mark.parametrize("attention", ["fused", "explicit"])
@pytest.mark.parametrize("side_hw", [(96, 96), (64, 128), (48, 80)])
def test_blocks_that_are_not_listed_attend_in_windows(
    side_hw: tuple[int, int], attention: str
) -> None:
    """Grids of 6 x 6, 4 x 8 and 3 x 5 tokens in windows of 4; block 1 is global."""
    torch.manual_seed(0)
    vit = PlainViT(replace(WINDOWED, attention=attention)).eval()
    index = torch.randn(1, 3, *side_hw)
    grid = [side // 16 for side in side_hw]
    with torch.inference_mode():
        tokens = vit.patch_embed(index).flatten(2).transpose(1, 2) + vit.positions(grid)
        for number, block in enumerate(vit.blocks):
            normed = block.norm1(tokens)
            if number == 1:
                tokens = tokens + block.attn(normed)
            else:
                windowed = slow_window_attention(block.attn, normed[0].unflatten(0, grid), 4)
                tokens = tokens + windowed.flatten(0, 1)
            tokens = tokens + block.mlp(block.norm2(tokens))
        torch.testing.assert_close(vit(index), tokens, rtol=0, atol=1e-5)


def test_windows_take_the_weights_of_global_attention_and_predict_otherwise() -> None:
    torch.manual_seed(0)
    everywhere = PlainViT(SMALL).eval()
    windowed = PlainViT(WINDOWED).eval()
    windowed.load_state_dict(everywhere.state_dict(), strict=True)
    with torch.inference_mode():
        index, small = pixels(96), pixels(64)
        assert (windowed(index) - everywhere(index)).abs().max() > 1e-4
        # 4 x 4 tokens are one window: nothing is cut
        torch.testing.assert_close(windowed(small), everywhere(small), rtol=0, atol=1e-5)


def test_all_blocks_are_global_by_default_whatever_is_listed() -> None:
    torch.manual_seed(0)
    vit = PlainViT(replace(SMALL, global_blocks=()))
    assert not any(isinstance(block, GridBlock) for block in vit.blocks)


def test_visible_tokens_and_class_tokens_have_no_windows() -> None:
    with pytest.raises(ValueError, match="needs global_attention=all"):
        PlainViT(WINDOWED)(pixels(96), torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="class_token=true needs global_attention=all"):
        replace(WINDOWED, class_token=True)
    with pytest.raises(ValueError, match=r"student\.global_attention=listed must be all"):
        SamiConfig(student=WINDOWED)


def test_the_blocks_see_only_what_is_visible() -> None:
    vit = PlainViT(SMALL).eval()
    visible = torch.tensor([[30, 2, 17, 5], [0, 1, 2, 35]])
    image = pixels(96, count=2)
    hidden = torch.ones(2, 36, dtype=torch.bool).scatter(1, visible, False)
    patch_hidden = hidden.view(2, 1, 6, 6).repeat_interleave(16, 2).repeat_interleave(16, 3)
    with torch.inference_mode():
        actual = vit(image, visible)
        assert actual.shape == (2, 4, 48)
        torch.testing.assert_close(actual, vit(image.masked_fill(patch_hidden, 9.0), visible))


def test_all_tokens_visible_in_any_order_is_the_whole_image() -> None:
    vit = PlainViT(SMALL).eval()
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))[None]
    with torch.inference_mode():
        actual, expected = vit(pixels(96), order), vit(pixels(96))
    torch.testing.assert_close(actual, expected[:, order[0]], rtol=0, atol=1e-5)


def test_visible_patches_and_their_gradients_are_those_of_the_convolution() -> None:
    """Beside all patches embedded by the convolution, and the visible ones taken afterwards."""
    torch.manual_seed(0)
    vit = PlainViT(replace(SMALL, depth=0, image_size=96))
    visible = torch.tensor([[30, 2, 17, 5], [0, 1, 2, 35]])
    image, weight = pixels(96, count=2), torch.randn(2, 4, 48)
    embedded = vit.patch_embed(image).flatten(2).transpose(1, 2) + vit.positions([6, 6])
    expected = torch.stack([embedded[index, visible[index]] for index in range(2)])
    actual = vit(image, visible)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    learned = [vit.patch_embed.proj.weight, vit.patch_embed.proj.bias, vit.pos_embed]
    for ours, theirs in zip(
        torch.autograd.grad((actual * weight).sum(), learned),
        torch.autograd.grad((expected * weight).sum(), learned),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_class_token_runs_along_and_is_not_handed_out() -> None:
    vit = PlainViT(replace(SMALL, class_token=True)).eval()
    with torch.inference_mode():
        before = vit(pixels(96))
        assert before.shape == (1, 36, 48)
        vit.cls_token.neg_()
        assert (vit(pixels(96)) - before).abs().max() > 1e-4


@both_kinds
@pytest.mark.parametrize("side", [64, 96, 160])
def test_any_image_of_whole_patches_is_encoded(kind: str, side: int) -> None:
    _, encoder = small(kind)
    with torch.inference_mode():
        features = encoder(pixels(side, count=2))
        one_by_one = torch.cat([encoder(index[None]) for index in pixels(side, count=2)])
    assert features.shape == (2, 256, side // 16, side // 16)
    torch.testing.assert_close(features, one_by_one, rtol=0, atol=1e-4)


def test_sams_positions_resized_by_hand_predict_the_same() -> None:
    """A grid of 12 seen at 6: absolute positions 12 to 6, the global blocks' relative 23 to 11."""
    config = replace(SMALL, kind="sam_vit", position_grid=12)
    torch.manual_seed(0)
    encoder = build_encoder(config).eval()
    state = encoder.state_dict()
    for name, tensor in state.items():
        if "pos" in name:
            torch.nn.init.normal_(tensor, std=0.5)
    with torch.inference_mode():
        expected = encoder(pixels(96))
    for name, tensor in state.items():
        if name.endswith("pos_embed"):
            square = tensor.permute(0, 3, 1, 2)
            resized = F.interpolate(square, size=(6, 6), mode="bicubic", antialias=True)
            state[name] = resized.permute(0, 2, 3, 1)
        elif name.endswith(("rel_pos_h", "rel_pos_w")) and len(tensor) == 23:
            state[name] = F.interpolate(tensor.T[None], size=11, mode="linear")[0].T
    at_home = build_encoder(replace(config, position_grid=6)).eval()
    at_home.load_state_dict(state)
    with torch.inference_mode():
        torch.testing.assert_close(at_home(pixels(96)), expected, rtol=0, atol=1e-4)


def test_sams_neck_maps_the_trunks_features() -> None:
    _, encoder = small("sam_vit")
    assert isinstance(encoder, SamImageEncoder)
    with torch.inference_mode():
        trunk = encoder.trunk_features(pixels(96))
        assert trunk.shape == (1, 48, 6, 6)
        torch.testing.assert_close(encoder.trunk.neck(trunk), encoder(pixels(96)))
