"""Shards and configs of the steps that are counted."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.scaling.inputs import write_images
from efficientsam_pl.config import load as configs
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.promptable.recipe import PromptableRecipe
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.recipes.sami.recipe import SamiRecipe
from efficientsam_pl.training.train import train

RECIPES = ("finetune-each", "finetune-interactive", "sami-stored")
SAMI = "sami-stored"
_MIN_IMAGES = 24  # in the shards
_TEACHER = {
    "encoder": {"width": 24, "depth": 1, "heads": 3, "global_blocks": [0], "neck_channels": 256},
    "precision": "fp32",
}
_STUDENTS = {"ti": {"width": 192, "heads": 3}, "s": {"width": 384, "heads": 6}}
_SMALL_ENCODER = {"width": 48, "depth": 12, "heads": 3, "image_size": 64, "position_grid": 4}
_TINY_DEPTH = 2
_INTERACTIVE = {"negative_clicks": True, "mask_prompts": True, "max_points": 12, "min_points": 6}


Compile = Literal["none", "blocks", "regions", "step"]


@dataclass(frozen=True)
class StepRequest:
    """A training step to count."""

    recipe: str
    images: int  # of the micro-batch
    student: Literal["ti", "s"] = "ti"
    # small: of the same depth, fast on a CPU; tiny: shallow, too
    scale: Literal["full", "small", "tiny"] = "full"
    compile: Compile = "none"
    kernels: Literal["plain", "triton"] = "triton"
    overrides: Sequence[str] = ()


def default_request(recipe: str) -> StepRequest:
    """Build the request for the shipped recipe of which the goals are set."""
    return StepRequest(recipe, images_of(recipe), "s" if recipe == SAMI else "ti")


def images_of(recipe: str) -> int:
    """Micro-batch of a GPU in the shipped recipe."""
    return 256 if recipe == SAMI else 8


def run_command(request: StepRequest, home: Path) -> None:
    """Run the stage's command on shards made for it.

    Args:
        request: The step.
        home: An empty folder for shards, configs and the run.
    """
    recipe: Any = SamiRecipe if request.recipe == SAMI else PromptableRecipe
    root: Any = PretrainConfig if request.recipe == SAMI else FinetuneConfig
    stage = _sami(request) if request.recipe == SAMI else _finetune(request, home)
    common = _common(request, home)
    merged = {
        section: common.get(section, {}) | stage.get(section, {}) for section in {*common, *stage}
    }
    file = home / "step.yaml"
    file.write_text(json.dumps(merged))
    train(recipe(configs.load(root, [str(file)], list(request.overrides))))


def _common(request: StepRequest, home: Path) -> dict[str, dict[str, Any]]:
    masks = _masks(request)
    shards = write_images(home / "shards", max(_MIN_IMAGES, request.images), masks)
    return {
        "data": {"train": shards, "workers": 0 if request.scale == "full" else 1},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "precision": "bf16",
            "compile": request.compile,
            "kernels": request.kernels,
            "global_batch": request.images,
            "micro_batch": request.images,
            "max_steps": 100_000,
        },
        "optim": {"warmup_steps": 1, "peak_lr_batch": None},
        "run": {"dir": str(home / "run")},
    }


def _masks(request: StepRequest) -> int:
    """Choose the masks per image in the shards; pretraining reads none."""
    if request.recipe == SAMI:
        return 1
    return 32 if request.scale == "full" else 8


def _sami(request: StepRequest) -> dict[str, dict[str, Any]]:
    if request.scale == "full":
        student: dict[str, Any] = {**_STUDENTS[request.student], "image_size": 224}
        return {"sami": {"student": student}, "teacher": {**_TEACHER, "image_size": 224}}
    depth = _TINY_DEPTH if request.scale == "tiny" else 8
    decoder = {"decoder_depth": depth, "decoder_width": 32, "decoder_heads": 4}
    return {
        "sami": {"student": _small_encoder(request), **decoder},
        "teacher": {**_TEACHER, "image_size": 64},
    }


def _finetune(request: StepRequest, home: Path) -> dict[str, dict[str, Any]]:
    interactive = request.recipe == "finetune-interactive"
    encoder: dict[str, Any] = dict(_STUDENTS[request.student])
    model: dict[str, Any] = {"encoder": encoder, "prompts": _INTERACTIVE if interactive else {}}
    if request.scale != "full":
        model["encoder"] = {**_small_encoder(request), "neck_channels": 32}
        model["decoder"] = {"mlp_width": 64, "iou_head_width": 32, "heads": 4}
    (home / "model.yaml").write_text(json.dumps(model))
    stage: dict[str, dict[str, Any]] = {
        "model": {"name": str(home / "model.yaml")},
        "masks": {
            "masks_per_image": 32 if request.scale == "full" else 4,
            "max_area": 1.0,
            "clicks": 1 if interactive else 6,
        },
        "prompts": {"rounds": "interactive" if interactive else "each"},
        "trainer": {"best_metric": None},
    }
    if interactive:
        stage["validation"] = {"clicks": [1, 3], "later_clicks": "corrections"}
    return stage


def _small_encoder(request: StepRequest) -> dict[str, int]:
    return _SMALL_ENCODER | ({"depth": _TINY_DEPTH} if request.scale == "tiny" else {})
