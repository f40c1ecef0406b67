import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from efficientsam_pl.draws import draw_key
from efficientsam_pl.models.config import EncoderConfig, SamiConfig, TeacherConfig
from efficientsam_pl.models.sami import Sami, TokenSplit, random_split, sine_positions
from efficientsam_pl.models.teacher import FrozenTeacher, teacher_width

STUDENT = EncoderConfig(width=24, depth=2, heads=2, image_size=64, position_grid=4)
CONFIG = SamiConfig(student=STUDENT, decoder_depth=2, decoder_width=32, decoder_heads=4)
TEACHER = TeacherConfig(
    encoder=EncoderConfig(
        kind="sam_vit", width=32, depth=2, heads=2, position_grid=64, global_blocks=(1,)
    )
)


def keys(*samples: str, epoch: int = 0) -> Tensor:
    return torch.tensor([draw_key(0, epoch, sample) for sample in samples])


def photos(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def test_visible_and_masked_tokens_are_each_token_once() -> None:
    split = random_split(keys("a", "b", "c"), tokens=196, visible=49)
    assert split.visible.shape == (3, 49)
    assert split.masked.shape == (3, 147)
    for visible, masked in zip(split.visible.tolist(), split.masked.tolist(), strict=True):
        assert sorted(visible + masked) == list(range(196))


def test_restore_puts_each_token_at_its_place() -> None:
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(16, generator=generator) for _ in range(3)])
    split = TokenSplit(order[:, :5], order[:, 5:])
    visible, masked = torch.randn(3, 5, 2), torch.randn(3, 11, 2)
    expected = torch.full((3, 16, 2), math.nan)
    for image in range(3):
        for row, place in enumerate(split.visible[image].tolist()):
            expected[image, place] = visible[image, row]
        for row, place in enumerate(split.masked[image].tolist()):
            expected[image, place] = masked[image, row]
    assert torch.equal(split.restore(visible, masked), expected)


def test_a_split_depends_on_its_samples_key_alone() -> None:
    together = random_split(keys("a", "b", "c"), 196, 49)
    torch.manual_seed(9)
    other_batch = random_split(keys("c", "x", "a", "y"), 196, 49)
    assert torch.equal(together.visible[0], other_batch.visible[2])
    assert torch.equal(together.masked[2], other_batch.masked[0])
    assert not torch.equal(together.visible[0], together.visible[1])
    next_epoch = random_split(keys("a", epoch=1), 196, 49)
    assert not torch.equal(together.visible[0], next_epoch.visible[0])


def test_every_token_is_seen_equally_often() -> None:
    split = random_split(keys(*(str(i) for i in range(2000))), 16, 4)
    counts = torch.bincount(split.visible.flatten(), minlength=16)
    # 2000 draws with a chance of 1/4: mean 500, standard deviation 19
    assert (counts - 500).abs().max() < 5 * 19.4


def test_sine_positions_are_a_plain_loop() -> None:
    """MAE's get_2d_sincos_pos_embed: the column's half first, each as sines, then cosines."""
    grid, width = 3, 16
    quarter = width // 4
    expected = torch.zeros(1, grid * grid, width)
    for row in range(grid):
        for column in range(grid):
            for i in range(quarter):
                frequency = 10000 ** (-i / quarter)
                token = expected[0, row * grid + column]
                token[i] = math.sin(column * frequency)
                token[quarter + i] = math.cos(column * frequency)
                token[2 * quarter + i] = math.sin(row * frequency)
                token[3 * quarter + i] = math.cos(row * frequency)
    torch.testing.assert_close(sine_positions(grid, width), expected, rtol=0, atol=1e-6)


VARIANTS = {
    "paper": CONFIG,
    "all tokens updated": replace(CONFIG, decoder_tokens="all"),
    "fixed positions": replace(CONFIG, positions="fixed"),
    "trunk target": replace(CONFIG, target="trunk"),
    "class token": replace(CONFIG, student=replace(STUDENT, class_token=True)),
    "encoder norm": replace(CONFIG, encoder_norm="layer_norm"),
    "all of them": replace(
        CONFIG,
        student=replace(STUDENT, class_token=True),
        decoder_tokens="all",
        positions="fixed",
        target="trunk",
        encoder_norm="layer_norm",
    ),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_student_learns_and_the_teacher_does_not(config: SamiConfig) -> None:
    teacher_config = replace(TEACHER, image_size=64)
    teacher = FrozenTeacher(teacher_config, config.target, config.student.grid())
    sami = Sami(config, teacher_width(teacher_config, config))
    image = photos(2, 64)
    predicted, split = sami(image, keys("a", "b"))
    target = teacher(image)
    assert predicted.shape == target.shape
    assert split.visible.shape == (2, 4)
    (predicted - target).square().mean().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    fixed = {"encoder.pos_embed", "decoder.position"} if config.positions == "fixed" else set()
    for name, parameter in sami.named_parameters():
        learns = parameter.grad is not None and bool(parameter.grad.any())
        assert learns == (name not in fixed), name


@pytest.mark.parametrize("teacher_size", [224, 1024])
def test_prediction_and_target_share_the_grid_of_224_pixels(teacher_size: int) -> None:
    config = replace(CONFIG, student=replace(STUDENT, image_size=224, position_grid=14))
    teacher_config = replace(TEACHER, image_size=teacher_size)
    teacher = FrozenTeacher(teacher_config, config.target, config.student.grid())
    image = photos(1, 224)
    predicted, split = Sami(config, teacher_width(teacher_config, config))(image, keys("a"))
    assert predicted.shape == teacher(image).shape == (1, 196, 256)
    assert split.visible.shape == (1, 49)  # a quarter of 14 * 14


def test_the_loss_reaches_the_encoder_from_masked_tokens_alone() -> None:
    sami = Sami(CONFIG, 8)
    predicted, split = sami(photos(1, 64), keys("a"))
    predicted[0, split.masked[0]].square().sum().backward()
    assert sami.encoder.patch_embed.proj.weight.grad.any()


def test_what_is_masked_is_not_seen() -> None:
    sami = Sami(CONFIG, 8).eval()
    image, key = photos(1, 64), keys("a")
    _, split = sami(image, key)
    hidden = torch.zeros(16, dtype=torch.bool).index_fill(0, split.masked[0], True).view(4, 4)
    blackened = image.clone()
    blackened[..., hidden.repeat_interleave(16, 0).repeat_interleave(16, 1)] = 0
    assert not torch.equal(blackened, image)
    torch.testing.assert_close(sami(blackened, key)[0], sami(image, key)[0], rtol=0, atol=0)


@pytest.mark.parametrize("tokens", ["masked", "all"])
def test_a_visible_tokens_prediction_depends_on_other_tokens_only_if_updated(tokens: str) -> None:
    sami = Sami(replace(CONFIG, decoder_tokens=tokens), 8).eval()
    generator = torch.Generator().manual_seed(1)
    encoded = torch.randn(1, 4, 24, generator=generator)
    split = random_split(keys("a"), 16, 4)
    changed = encoded.clone()
    changed[0, 1] += 1
    with torch.inference_mode():
        moved = (sami.decoder(changed, split) - sami.decoder(encoded, split)).abs().amax(2)[0]
    visible = split.visible[0]
    assert moved[visible[1]] > 1e-4
    assert (moved[split.masked[0]] > 1e-5).all()
    assert bool((moved[visible[0]] > 1e-5).item()) == (tokens == "all")


def test_photos_do_not_see_each_other() -> None:
    sami = Sami(CONFIG, 8).eval()
    image, key = photos(2, 64), keys("a", "b")
    with torch.inference_mode():
        together, _ = sami(image, key)
        alone, _ = sami(image[1:], key[1:])
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-5)
