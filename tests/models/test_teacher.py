from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from efficientsam_pl.models.config import NAMED, EncoderConfig, TeacherConfig
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.models.teacher import FrozenTeacher, feature_width
from efficientsam_pl.models.weights_source import WeightsError

ENCODER = EncoderConfig(
    kind="sam_vit", width=32, depth=2, heads=2, position_grid=64, global_blocks=(1,)
)
AT_224 = TeacherConfig(encoder=ENCODER, precision="fp32")
AT_1024 = replace(AT_224, image_size=1024)


def images(count: int = 1, side: int = 224) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("config", [AT_224, AT_1024], ids=["224", "1024"])
@pytest.mark.parametrize(("output", "channels"), [("neck", 256), ("trunk", 32)])
def test_features_lie_on_the_students_grid(
    config: TeacherConfig, output: Literal["neck", "trunk"], channels: int
) -> None:
    config = replace(config, output=output)
    features = FrozenTeacher(config, grid=14)(images())
    assert features.shape == (1, 14 * 14, channels)
    assert features.isfinite().all()
    assert features.std(dim=1).mean() > 1e-3  # places differ
    assert feature_width(config) == channels


def test_features_at_1024_are_averaged_down_in_image_order() -> None:
    teacher = FrozenTeacher(AT_1024, grid=16)
    teacher.encoder = nn.AvgPool2d(16)  # "features" that can be followed
    ramp = torch.arange(1024.0) / 4
    image = torch.stack([ramp.expand(1024, 1024), ramp[:, None].expand(1024, 1024)])
    image = torch.cat([image, torch.zeros(1, 1024, 1024)])[None]  # red encodes x, green y
    cells = teacher(image).unflatten(1, (16, 16))[0]
    expected = F.avg_pool2d(teacher.pixel_norm(image), 64)[0].permute(1, 2, 0)
    inside = slice(1, -1)  # at the border the filter is cut off
    torch.testing.assert_close(cells[inside, inside], expected[inside, inside], rtol=0, atol=1e-3)


def test_nothing_of_the_teacher_learns() -> None:
    teacher = FrozenTeacher(AT_224, grid=14)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    image = images().float().requires_grad_()
    assert not teacher(image).requires_grad


def test_the_teacher_stays_in_evaluation_mode() -> None:
    teacher = FrozenTeacher(AT_224, grid=14)
    both = nn.ModuleList([teacher, nn.Dropout()]).train()
    assert both[1].training
    assert not any(module.training for module in teacher.modules())


def test_random_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    first = FrozenTeacher(AT_224, grid=14).state_dict()
    torch.manual_seed(2)
    second = FrozenTeacher(AT_224, grid=14).state_dict()
    other = FrozenTeacher(replace(AT_224, seed=1), grid=14).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(
        first["encoder.trunk.patch_embed.proj.weight"],
        other["encoder.trunk.patch_embed.proj.weight"],
    )


def test_building_a_teacher_draws_no_global_random_number() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    FrozenTeacher(AT_224, grid=14)
    assert torch.equal(torch.rand(4), expected)


def test_a_random_teacher_looks_at_positions() -> None:
    teacher = FrozenTeacher(AT_224, grid=14)
    for name, parameter in teacher.encoder.named_parameters():
        if name.endswith(("pos_embed", "rel_pos_h", "rel_pos_w")):
            assert parameter.std() > 0.01, name


@pytest.fixture(scope="module")
def sam_small_teacher(released_sam_small: Path) -> TeacherConfig:
    encoder = replace(NAMED["sam_vit_h"].encoder, width=96, depth=4, heads=3, global_blocks=(1, 3))
    return TeacherConfig(encoder=encoder, weights=str(released_sam_small), precision="fp32")


def test_a_released_file_fills_the_teacher(
    sam_small_teacher: TeacherConfig, sam_small: Segmenter
) -> None:
    teacher = FrozenTeacher(sam_small_teacher, grid=14)
    image = images()
    with torch.inference_mode():
        expected = sam_small.encode(image).flatten(2).transpose(1, 2)
    torch.testing.assert_close(teacher(image), expected, rtol=0, atol=1e-5)


def test_the_neck_turns_the_trunks_features_into_the_others(
    sam_small_teacher: TeacherConfig,
) -> None:
    neck = FrozenTeacher(sam_small_teacher, grid=14)
    trunk = FrozenTeacher(replace(sam_small_teacher, output="trunk"), grid=14)
    image = images()
    before = trunk(image).transpose(1, 2).unflatten(2, (14, 14))
    with torch.no_grad():
        expected = neck.encoder.trunk.neck(before).flatten(2).transpose(1, 2)
    torch.testing.assert_close(neck(image), expected, rtol=0, atol=1e-5)


def test_a_file_of_another_encoder_is_an_error(sam_small_teacher: TeacherConfig) -> None:
    config = replace(sam_small_teacher, encoder=ENCODER)
    with pytest.raises(WeightsError, match=r"holds weights of another model; .*blocks\.2"):
        FrozenTeacher(config, grid=14)


def test_half_precision_is_near_single(sam_small_teacher: TeacherConfig) -> None:
    half = FrozenTeacher(replace(sam_small_teacher, precision="bf16"), grid=14)
    image = images()
    single = FrozenTeacher(sam_small_teacher, grid=14)(image)
    with torch.autocast("cpu"):  # the student's; the teacher ignores it
        features = half(image)
        assert torch.equal(FrozenTeacher(sam_small_teacher, grid=14)(image), single)
    assert features.dtype == torch.bfloat16
    error = (features.float() - single).square().mean() / single.square().mean()
    assert 1e-6 < float(error) < 1e-3  # bfloat16 keeps 8 bits


def test_feature_map_of_a_padded_image_equals_sams(
    sam_small_teacher: TeacherConfig, sam_small: Segmenter
) -> None:
    teacher = FrozenTeacher(replace(sam_small_teacher, image_size=1024), grid=14)
    image, content = images(side=1024), torch.tensor([[1024, 700]])
    with torch.inference_mode():
        expected = sam_small.encode(image, content)
    torch.testing.assert_close(teacher.feature_map(image, content), expected, rtol=0, atol=1e-5)


CLIP = TeacherConfig(kind="timm", timm_name="vit_tiny_patch16_224", precision="fp32")


@pytest.fixture(scope="module")
def timm_tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    path = tmp_path_factory.mktemp("timm") / "tiny.pth"
    torch.save(model.state_dict(), path)
    return model, path


def test_timm_teacher_gives_the_patches_of_timm(timm_tiny: tuple[nn.Module, Path]) -> None:
    model, path = timm_tiny
    image = images()
    with torch.inference_mode():
        pixels = (image.float() / 255 - 0.5) / 0.5  # its mean and standard deviation
        expected = model.forward_features(pixels)[:, 1:]
    teacher = FrozenTeacher(replace(CLIP, weights=str(path)), grid=14)
    torch.testing.assert_close(teacher(image), expected, rtol=0, atol=1e-5)
    assert teacher.width == feature_width(CLIP) == 192
    assert len(teacher.blocks()) == 12


def test_dinov3_teacher_gives_its_patches_without_class_and_register_tokens() -> None:
    config = replace(CLIP, timm_name="vit_small_patch16_dinov3", image_size=96, seed=3)
    teacher = FrozenTeacher(config, grid=6)
    image = images(side=96)
    with torch.inference_mode():
        model = teacher.encoder.trunk
        pixels = teacher.pixel_norm(image)
        tokens = model.forward_features(pixels)  # one class and four register tokens come first
        assert tokens.shape[1] == 5 + 36
        by_timm = model.forward_intermediates(pixels, 1, norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(teacher(image), tokens[:, 5:])
    torch.testing.assert_close(teacher(image), by_timm.flatten(2).transpose(1, 2))
    assert teacher.width == feature_width(config) == 384


@pytest.mark.parametrize("meta", [False, True], ids=["timm's names", "Meta's names"])
def test_sam2_teacher_gives_the_stage_of_stride_16(meta: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = timm.create_model("sam2_hiera_tiny", pretrained=False).eval()
    state = model.state_dict()
    if meta:
        names = {"mlp.fc1": "mlp.layers.0", "mlp.fc2": "mlp.layers.1"}
        for ours, theirs in names.items():
            state = {name.replace(ours, theirs): value for name, value in state.items()}
        state = {"model": {f"image_encoder.trunk.{n}": v for n, v in state.items()}}
    torch.save(state, tmp_path / "hiera.pt")
    config = replace(
        CLIP, timm_name="sam2_hiera_tiny", image_size=128, weights=str(tmp_path / "hiera.pt")
    )
    teacher = FrozenTeacher(config, grid=8)
    image = images(side=128)
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.inference_mode():
        stages = model.forward_intermediates((image / 255 - mean) / std, intermediates_only=True)
    torch.testing.assert_close(
        teacher(image), stages[2].flatten(2).transpose(1, 2), rtol=0, atol=1e-4
    )
    assert teacher.width == feature_width(config) == 384
    assert config.grid() == 8
    assert len(teacher.blocks()) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timm_name": "vit_nothing_patch16"}, "timm_name=vit_nothing_patch16 is not a plain ViT"),
        ({"timm_name": "convmixer_768_32_patch7"}, "is not a plain ViT"),
        ({"weights": "sam"}, "does not hold weights of timm's vit_tiny_patch16_224"),
    ],
)
def test_wrong_timm_teacher_is_an_error(
    change: dict[str, str], message: str, released_sam_small: Path
) -> None:
    if change.get("weights"):
        change = {"weights": str(released_sam_small)}
    with pytest.raises(WeightsError, match=message):
        FrozenTeacher(replace(CLIP, **change), grid=14)  # type: ignore[arg-type]
