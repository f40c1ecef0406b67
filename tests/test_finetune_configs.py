"""Finetuning's recipes say what the papers say, and differ from each other only where they mean to.

The numbers are those of EfficientSAM, section 4.1, and of SAM, appendix A.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from efficientsam_pl.cli.config_options import check_inputs
from efficientsam_pl.config import load as configs
from efficientsam_pl.config.diff import flatten
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.config import FreezeConfig
from efficientsam_pl.models.registry import segmenter_config
from efficientsam_pl.prompts.samplers import build_prompt_sampler
from efficientsam_pl.recipes.promptable.config import FinetuneConfig

FOLDER = Path(__file__).resolve().parents[1] / "configs/finetune"
PAPER = ("ti", "s", "ti_interactive", "s_interactive")
SA1B_IMAGES = 1000 * 11_185  # tars times images per tar


def load(name: str, *more: str) -> FinetuneConfig:
    return configs.load(FinetuneConfig, [f"finetune/{name}"], list(more))


def changed(name: str, base: str) -> dict[str, Any]:
    """Return the keys in which a recipe differs from another."""
    values, base_values = (flatten(configs.as_dict(load(config))) for config in (name, base))
    assert values.keys() == base_values.keys()
    return {key: value for key, value in values.items() if value != base_values[key]}


def test_a_custom_set_can_be_trained_interactively() -> None:
    assert load("custom_coco", "prompts.rounds=interactive").prompts.points() == 10


def test_every_file_is_tested_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*PAPER, "custom_coco"}


@pytest.mark.parametrize("name", PAPER)
def test_length_batch_and_optimizer_are_the_papers(name: str) -> None:
    config = load(name)
    trainer, optim = config.trainer, config.optim
    assert trainer.global_batch == 128
    assert trainer.max_steps * 128 / SA1B_IMAGES == pytest.approx(5, rel=1e-3)
    assert (optim.peak_lr, optim.peak_lr_batch, optim.decay) == (4e-4, None, "linear")
    assert (optim.betas, optim.weight_decay) == ((0.9, 0.999), 0.1)
    assert config.masks.flip == 0
    assert config.model.freeze == FreezeConfig()


@pytest.mark.parametrize("name", PAPER)
def test_losses_are_sams(name: str) -> None:
    loss, masks = load(name).loss, load(name).masks
    assert (loss.focal, loss.dice, loss.iou) == (20, 1, 1)
    assert (loss.focal_alpha, loss.focal_gamma) == (0.25, 2)
    assert loss.sampled_points is None
    assert loss.single_mask > 0, "token 0 learns in both recipes"
    assert masks.max_area == 0.9
    assert masks.decoded_at_once is not None
    # 70 MB a prompt uncompiled: three quarters of 80 GB
    assert masks.decoded_at_once * load(name).trainer.micro_batch * 0.070 <= 60


@pytest.mark.parametrize(("name", "width"), [("ti", 192), ("s", 384)])
def test_the_papers_recipe_has_the_released_layout(name: str, width: int) -> None:
    model = segmenter_config(load(name).model.name)
    assert (model.encoder.width, model.encoder.image_size, model.resize) == (width, 1024, "squash")
    assert (model.encoder.depth, model.encoder.patch_size) == (12, 16)
    assert model.encoder.global_attention == "all"
    prompts = model.prompts
    assert [prompts.negative_clicks, prompts.mask_prompts, prompts.drawn_prompts] == 3 * [False]
    assert prompts.max_points == 6


@pytest.mark.parametrize("name", ["ti", "s"])
def test_a_prediction_follows_each_of_the_first_six_points(name: str) -> None:
    sampler = build_prompt_sampler(load(name).prompts, 1024)
    assert sampler.rounds == 6
    assert {sampler.output_tokens(number) for number in range(6)} == {"candidates"}
    assert load(name).prompts.box_share == 0.5


@pytest.mark.parametrize("name", ["ti_interactive", "s_interactive"])
def test_sams_loop_has_eleven_steps(name: str) -> None:
    config = load(name)
    prompts = config.prompts
    assert build_prompt_sampler(prompts, 1024).rounds == 11
    assert (prompts.corrections, prompts.repeats) == (8, 2)
    assert (prompts.box_jitter, prompts.box_jitter_max_px) == (0.1, 20)
    model = segmenter_config(config.model.name).prompts
    assert model.negative_clicks
    assert model.mask_prompts


@pytest.mark.parametrize("size", ["ti", "s"])
def test_the_interactive_recipe_differs_in_prompts_alone(size: str) -> None:
    assert changed(f"{size}_interactive", size) == {
        "run.dir": f"runs/finetune_{size}_interactive",
        "model.name": f"efficient_sam_{size}_interactive",
        "masks.clicks": 1,
        "prompts.rounds": "interactive",
        "validation.clicks": [1, 3, 5],
        "validation.later_clicks": "corrections",
    }


def test_the_small_model_is_trained_as_the_tiny_one() -> None:
    assert changed("s", "ti") == {"run.dir": "runs/finetune_s", "model.name": "efficient_sam_s"}


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_needs_no_more_than_images(name: str, tmp_path: Path) -> None:
    (tmp_path / "a-0.tar").touch()
    check_inputs(load(name, f"data.train={tmp_path}/a-*.tar"))
    with pytest.raises(UserError, match=r"data\.train= must be given"):
        check_inputs(load(name))


def test_a_custom_set_needs_its_files(tmp_path: Path) -> None:
    for name in ("set.json", "weights.pt"):
        (tmp_path / name).write_text("content")
    config = load(
        "custom_coco",
        f"data.coco.annotations={tmp_path}/set.json",
        f"data.coco.images={tmp_path}",
        f"model.weights={tmp_path}/weights.pt",
    )
    check_inputs(config)
    assert config.model.freeze == FreezeConfig(image_encoder=True)
    assert config.trainer.world_size() == 1
    assert config.trainer.accelerator == "auto"
    lost = replace(config, model=replace(config.model, weights=f"{tmp_path}/gone.pt"))
    with pytest.raises(UserError, match=r"model\.weights: no such file"):
        check_inputs(lost)


@pytest.mark.parametrize(
    ("part", "helps", "does_not"),
    [("image_encoder", "encoder", "decoder"), ("mask_decoder", "decoder", "encoder")],
)
def test_a_frozen_part_needs_weights_from_a_file(
    part: str, helps: str, does_not: str, tmp_path: Path
) -> None:
    file = tmp_path / "weights.pt"
    for made in (file, tmp_path / "a-0.tar"):
        made.write_text("content")
    frozen = (f"data.train={tmp_path}/a-*.tar", f"model.freeze.{part}=true")
    for given in ([], [f"model.{does_not}={file}"]):
        with pytest.raises(UserError, match=rf"model\.freeze\.{part}=true .*model\.{helps}="):
            check_inputs(load("ti", *frozen, *given))
    for key in ("weights", helps):
        check_inputs(load("ti", *frozen, f"model.{key}={file}"))


@pytest.mark.parametrize("name", [*PAPER, "custom_coco"])
def test_a_few_steps_of_it_fit_on_a_cpu(name: str) -> None:
    files = [f"finetune/{name}", "debug/cpu"]
    config = configs.load(FinetuneConfig, files, ["masks.masks_per_image=4"])
    assert config.trainer.max_steps == 4
    assert config.prompts == load(name).prompts
