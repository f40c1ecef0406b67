from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from efficientsam_pl.keyed_random import sample_key
from efficientsam_pl.models.config import EncoderConfig, SamiConfig, TeacherConfig
from efficientsam_pl.models.patchify import patch_targets
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.teacher import FrozenTeacher

STUDENT = EncoderConfig(width=24, depth=2, heads=2, image_size=64, position_grid=4)
CONFIG = SamiConfig(student=STUDENT, decoder_depth=2, decoder_width=32, decoder_heads=4)
TEACHER = TeacherConfig(
    encoder=EncoderConfig(
        kind="sam_vit", width=32, depth=2, heads=2, position_grid=64, global_blocks=(1,)
    ),
    precision="fp32",
)


def keys(*samples: str) -> Tensor:
    return torch.tensor([sample_key(0, 0, sample) for sample in samples])


def images(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


VARIANTS = {
    "paper": CONFIG,
    "MAE's decoder": replace(CONFIG, decoder="self_attention"),
    "fixed positions": replace(CONFIG, positions="fixed"),
    "class token": replace(CONFIG, student=replace(STUDENT, class_token=True)),
    "encoder norm": replace(CONFIG, encoder_norm="layer_norm"),
    "all of them": replace(
        CONFIG,
        student=replace(STUDENT, class_token=True),
        decoder="self_attention",
        positions="fixed",
        encoder_norm="layer_norm",
    ),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_student_learns_and_the_teacher_does_not(config: SamiConfig) -> None:
    teacher = FrozenTeacher(replace(TEACHER, image_size=64), config.student.grid())
    sami = Sami(config, teacher.width)
    image = images(2, 64)
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
@pytest.mark.parametrize("output", ["neck", "trunk"])
def test_prediction_and_target_share_the_grid_of_224_pixels(output: str, teacher_size: int) -> None:
    config = replace(CONFIG, student=replace(STUDENT, image_size=224, position_grid=14))
    teacher = FrozenTeacher(
        replace(TEACHER, image_size=teacher_size, output=output), config.student.grid()
    )
    image = images(1, 224)
    predicted, split = Sami(config, teacher.width)(image, keys("a"))
    assert predicted.shape == teacher(image).shape == (1, 196, 256 if output == "neck" else 32)
    assert split.visible.shape == (1, 49)  # a quarter of 14 * 14


def test_the_control_predicts_the_images_patches() -> None:
    control = Sami(VARIANTS["MAE's decoder"], 3 * 16**2)
    image = images(2, 64)
    predicted, _ = control(image, keys("a", "b"))
    assert predicted.shape == patch_targets(image, 16).shape == (2, 16, 768)


def test_the_loss_reaches_the_encoder_from_masked_tokens_alone() -> None:
    sami = Sami(CONFIG, 8)
    predicted, split = sami(images(1, 64), keys("a"))
    predicted[0, split.masked[0]].square().sum().backward()
    assert sami.encoder.patch_embed.proj.weight.grad.any()


def test_what_is_masked_is_not_seen() -> None:
    sami = Sami(CONFIG, 8).eval()
    image, key = images(1, 64), keys("a")
    _, split = sami(image, key)
    hidden = torch.zeros(16, dtype=torch.bool).index_fill(0, split.masked[0], True).view(4, 4)
    blackened = image.clone()
    blackened[..., hidden.repeat_interleave(16, 0).repeat_interleave(16, 1)] = 0
    assert not torch.equal(blackened, image)
    torch.testing.assert_close(sami(blackened, key)[0], sami(image, key)[0], rtol=0, atol=0)


def test_images_do_not_see_each_other() -> None:
    sami = Sami(CONFIG, 8).eval()
    image, key = images(2, 64), keys("a", "b")
    with torch.inference_mode():
        together, _ = sami(image, key)
        alone, _ = sami(image[1:], key[1:])
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, VARIANTS["MAE's decoder"]], ids=["cross", "self"])
def test_blocks_are_called_in_order_once_each_with_tensors_alone(config: SamiConfig) -> None:
    sami = Sami(config, 8).eval()
    called = []
    for block in sami.blocks():
        block.register_forward_hook(
            lambda module, args, kwargs, _: called.append((module, args, kwargs)), with_kwargs=True
        )
    sami(images(1, 64), keys("a"))
    assert [module for module, _, _ in called] == sami.blocks()
    assert len(sami.blocks()) == 4
    assert all(isinstance(argument, Tensor) for _, args, _ in called for argument in args)
    assert all(kwargs == {} for _, _, kwargs in called)


def test_the_patches_that_are_not_seen_are_not_embedded() -> None:
    """4 tokens of 3 * 16 * 16 numbers to 24: as many multiplications, twice that in operations."""
    explicit = replace(STUDENT, attention="explicit")  # torch does not count the fused one on CPUs
    sami = Sami(replace(CONFIG, student=explicit), 8).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        sami.encoder(torch.zeros(1, 3, 64, 64), torch.tensor([[0, 5, 10, 15]]))
    blocks = 2 * 2 * (4 * 12 * 24**2 + 2 * 4**2 * 24)
    assert counter.get_total_flops() == 2 * 4 * 768 * 24 + blocks
