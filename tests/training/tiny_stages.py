"""Tiny stages of every recipe, with batches; no trainer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from efficientsam_pl.losses.config import FeatureLossConfig, MaskLossConfig
from efficientsam_pl.models.classifier import Classifier
from efficientsam_pl.models.classifier_config import ClassifierConfig
from efficientsam_pl.models.config import (
    EncoderConfig,
    MaskDecoderConfig,
    PromptEncoderConfig,
    SamiConfig,
    SegmenterConfig,
    TeacherConfig,
)
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.models.targets import OnlineTarget, PixelTarget, StoredTarget, Target
from efficientsam_pl.models.teacher import FrozenTeacher
from efficientsam_pl.optim.config import FlooredOptimConfig, OptimConfig
from efficientsam_pl.prompts.config import PromptingConfig
from efficientsam_pl.prompts.samplers import build_prompt_sampler
from efficientsam_pl.recipes.classification.module import ImageClassification
from efficientsam_pl.recipes.promptable.module import PromptedSegmentation
from efficientsam_pl.recipes.promptable.prompt_loop import PromptLoop
from efficientsam_pl.recipes.sami.module import SamiPretraining
from efficientsam_pl.recipes.sami.recipe import build_student
from efficientsam_pl.structures import ClassBatch, ImageBatch, MaskBatch
from efficientsam_pl.training.config import TrainerConfig
from efficientsam_pl.training.module import TrainingModule
from efficientsam_pl.training.parallelize import parallelize

SIDE, IMAGES, MASKS, CHANNELS, CLASSES = 32, 2, 3, 16, 5
ENCODER = EncoderConfig(
    width=12, depth=2, heads=3, image_size=SIDE, position_grid=2, neck_channels=16
)
SEGMENTER = SegmenterConfig(
    encoder=ENCODER,
    prompts=PromptEncoderConfig(negative_clicks=True, mask_prompts=True, max_points=None),
    decoder=MaskDecoderConfig(depth=1, heads=2, mlp_width=16, iou_head_width=16),
)
SAMI = SamiConfig(student=ENCODER, decoder_depth=1, decoder_width=16, decoder_heads=2)
DISTILLED = SamiConfig(student=ENCODER, mask_ratio=0.0, decoder="none")
TEACHER = TeacherConfig(
    encoder=EncoderConfig(width=12, depth=1, heads=3, global_blocks=(0,), neck_channels=CHANNELS),
    image_size=SIDE,
    precision="fp32",
    overlap=True,
)
PROMPTING = {
    "finetune-each": PromptingConfig(rounds="each", max_clicks=2),
    "finetune-interactive": PromptingConfig(rounds="interactive", corrections=2, repeats=1),
    "finetune-drawn": PromptingConfig(rounds="drawn", max_clicks=2, first_click="centre"),
}
LOSSES = {"finetune-drawn": MaskLossConfig(sampled_points=16)}
TARGETS: dict[str, Callable[[], Target]] = {
    "sami-stored": lambda: StoredTarget(CHANNELS),
    "distill-stored": lambda: StoredTarget(CHANNELS),
    "mae": lambda: PixelTarget(ENCODER.patch_size),
    "sami-online": lambda: OnlineTarget(FrozenTeacher(TEACHER, ENCODER.grid())),
}
CLASSIFICATION = "classify"
ALL_RECIPES = (*PROMPTING, *TARGETS, CLASSIFICATION)
RECIPES = ("finetune-each", "finetune-interactive", "sami-stored", "mae", CLASSIFICATION)


def tiny_stage(recipe: str, **trainer: Any) -> TrainingModule:
    """A stage with weights that depend on nothing else, prepared for a CPU."""
    arrange: Callable[..., None] = partial(
        parallelize, config=TrainerConfig(accelerator="cpu", **trainer)
    )
    stage: TrainingModule
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if recipe in PROMPTING:
            sampler = build_prompt_sampler(PROMPTING[recipe], SIDE)
            prompt_loop = PromptLoop(sampler, LOSSES.get(recipe, MaskLossConfig()), 2)
            stage = PromptedSegmentation(
                Segmenter(SEGMENTER), prompt_loop, OptimConfig(), 9, arrange
            )
        elif recipe == CLASSIFICATION:
            classifier = Classifier(ClassifierConfig(vit=ENCODER, classes=CLASSES, drop_path=0.5))
            stage = ImageClassification(classifier, 0.1, FlooredOptimConfig(), 9, arrange)
        else:
            target = TARGETS[recipe]()
            config = DISTILLED if recipe.startswith("distill") else SAMI
            model = build_student(config, target.width)
            stage = SamiPretraining(model, target, FeatureLossConfig(), OptimConfig(), 9, arrange)
    stage.log = stage.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    stage.configure_model()
    return stage


def tiny_batch(recipe: str, seed: int, images: int = IMAGES) -> Any:
    """Random images; the number of valid slots depends on the seed."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (images, 3, SIDE, SIDE), generator=draw).to(torch.uint8)
    names, numbers = tuple(f"{seed}-{i}" for i in range(images)), torch.arange(images) + 99 * seed
    if recipe == CLASSIFICATION:
        box = torch.tensor([4, 8, 12, 30]) if seed % 2 else torch.zeros(4, dtype=torch.long)
        return ClassBatch(
            image=image,
            sample_key=numbers,
            valid=torch.arange(images) <= seed,
            key=names,
            label=(torch.arange(images) + seed) % CLASSES,
            partner=torch.arange(images).flip(0),
            own_share=torch.full((images,), 0.6),
            mix_box=box.repeat(images, 1),
        )
    if recipe not in PROMPTING:
        features = torch.randn(images, ENCODER.grid() ** 2, CHANNELS, generator=draw)
        valid = torch.arange(images) <= seed
        stored = features if recipe.endswith("-stored") else None
        return ImageBatch(image, numbers, valid, names, features=stored)
    return MaskBatch(
        image=image,
        content_hw=torch.full((images, 2), SIDE),
        masks=torch.rand(images, MASKS, 8, 8, generator=draw) > 0.5,
        boxes_xyxy_px=torch.tensor([4.0, 4.0, 20.0, 20.0]).repeat(images, MASKS, 1),
        clicks_px=SIDE * torch.rand(images, MASKS, 2, 2, generator=draw),
        valid=(torch.arange(MASKS) <= seed).repeat(images, 1),
        sample_key=numbers,
        key=names,
    )
