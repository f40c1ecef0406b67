from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from efficientsam_pl.models.config import NAMED, EncoderConfig, SamiConfig, TeacherConfig
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.models.teacher import FrozenTeacher, teacher_width
from efficientsam_pl.models.weights import WeightsError

ENCODER = EncoderConfig(
    kind="sam_vit", width=32, depth=2, heads=2, position_grid=64, global_blocks=(1,)
)
AT_224 = TeacherConfig(encoder=ENCODER)
AT_1024 = TeacherConfig(encoder=ENCODER, image_size=1024)


def photos(count: int = 1, side: int = 224) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("config", [AT_224, AT_1024], ids=["224", "1024"])
@pytest.mark.parametrize(("target", "channels"), [("neck", 256), ("trunk", 32)])
def test_features_lie_on_the_students_grid(
    config: TeacherConfig, target: str, channels: int
) -> None:
    features = FrozenTeacher(config, target, grid=14)(photos())
    assert features.shape == (1, 14 * 14, channels)
    assert features.isfinite().all()
    assert features.std(dim=1).mean() > 1e-3  # places differ
    assert teacher_width(config, SamiConfig(target=target)) == channels


def test_features_at_1024_are_averaged_down_in_image_order() -> None:
    teacher = FrozenTeacher(AT_1024, "neck", grid=16)
    teacher.encoder = nn.AvgPool2d(16)  # "features" that can be followed
    ramp = torch.arange(1024.0) / 4
    image = torch.stack([ramp.expand(1024, 1024), ramp[:, None].expand(1024, 1024)])
    image = torch.cat([image, torch.zeros(1, 1024, 1024)])[None]  # red tells x, green tells y
    cells = teacher(image).unflatten(1, (16, 16))[0]
    expected = F.avg_pool2d(teacher.pixel_norm(image), 64)[0].permute(1, 2, 0)
    inside = slice(1, -1)  # at the border the filter is cut off
    torch.testing.assert_close(cells[inside, inside], expected[inside, inside], rtol=0, atol=1e-3)


def test_nothing_of_the_teacher_learns() -> None:
    teacher = FrozenTeacher(AT_224, "neck", grid=14)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    image = photos().float().requires_grad_()
    assert not teacher(image).requires_grad


def test_the_teacher_stays_in_evaluation_mode() -> None:
    teacher = FrozenTeacher(AT_224, "neck", grid=14)
    both = nn.ModuleList([teacher, nn.Dropout()]).train()
    assert both[1].training
    assert not any(module.training for module in teacher.modules())


def test_random_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    first = FrozenTeacher(AT_224, "neck", grid=14).state_dict()
    torch.manual_seed(2)
    second = FrozenTeacher(AT_224, "neck", grid=14).state_dict()
    other = FrozenTeacher(replace(AT_224, seed=1), "neck", grid=14).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(
        first["encoder.trunk.patch_embed.proj.weight"],
        other["encoder.trunk.patch_embed.proj.weight"],
    )


def test_building_a_teacher_draws_no_global_random_number() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    FrozenTeacher(AT_224, "neck", grid=14)
    assert torch.equal(torch.rand(4), expected)


def test_a_random_teacher_looks_at_positions() -> None:
    teacher = FrozenTeacher(AT_224, "neck", grid=14)
    for name, parameter in teacher.encoder.named_parameters():
        if name.endswith(("pos_embed", "rel_pos_h", "rel_pos_w")):
            assert parameter.std() > 0.01, name


@pytest.fixture(scope="module")
def sam_small_teacher(released_sam_small: Path) -> TeacherConfig:
    encoder = replace(NAMED["sam_vit_h"].encoder, width=96, depth=4, heads=3, global_blocks=(1, 3))
    return TeacherConfig(encoder=encoder, weights=str(released_sam_small))


def test_a_released_file_fills_the_teacher(
    sam_small_teacher: TeacherConfig, sam_small: Segmenter
) -> None:
    teacher = FrozenTeacher(sam_small_teacher, "neck", grid=14)
    image = photos()
    with torch.inference_mode():
        expected = sam_small.encode(image).flatten(2).transpose(1, 2)
    torch.testing.assert_close(teacher(image), expected, rtol=0, atol=1e-5)


def test_the_neck_turns_the_trunks_features_into_the_others(
    sam_small_teacher: TeacherConfig,
) -> None:
    neck, trunk = (FrozenTeacher(sam_small_teacher, t, grid=14) for t in ("neck", "trunk"))
    image = photos()
    before = trunk(image).transpose(1, 2).unflatten(2, (14, 14))
    with torch.no_grad():
        expected = neck.encoder.trunk.neck(before).flatten(2).transpose(1, 2)
    torch.testing.assert_close(neck(image), expected, rtol=0, atol=1e-5)


def test_a_file_of_another_encoder_is_an_error(sam_small_teacher: TeacherConfig) -> None:
    config = replace(sam_small_teacher, encoder=ENCODER)
    with pytest.raises(WeightsError, match=r"holds weights of another model; .*blocks\.2"):
        FrozenTeacher(config, "neck", grid=14)
