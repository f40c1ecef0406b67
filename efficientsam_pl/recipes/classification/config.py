"""Config of `efficientsam classify`. Imports no torch."""

from dataclasses import dataclass, field
from typing import ClassVar

from efficientsam_pl.config.command_help import CommandHelp
from efficientsam_pl.config.fields import path
from efficientsam_pl.config.load import ConfigError
from efficientsam_pl.config.unused import refuse_unused
from efficientsam_pl.data.class_config import (
    AugmentConfig,
    ClassListConfig,
    MixConfig,
    labelled_crop,
)
from efficientsam_pl.data.config import CropConfig
from efficientsam_pl.models.classifier_config import ClassifierConfig, Pool, check_classifier
from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.optim.config import FlooredOptimConfig, classify_optim
from efficientsam_pl.training.config import TRAINING_KEYS, RecipeConfig, TrainerConfig


@dataclass(frozen=True, kw_only=True)
class ClassifyModelConfig:
    """The classifier, and the file of its initial weights; without one it starts from scratch."""

    vit: EncoderConfig = field(default_factory=lambda: EncoderConfig(image_size=224))
    classes: int | None = None  # size of the head; None: the number of names in the class list
    # mean: of the patch tokens, then a norm (MAE, models_vit.py, global_pool); class_token: the
    # last norm, then the class token, which the model then needs. The paper names neither
    pool: Pool = "mean"
    # probability at the last block, rising linearly (MAE, FINETUNE.md: .1 for B). Open for Ti and S
    drop_path: float = 0.1
    # side of the scored centre over that of the resized image: 224 / 256 (MAE, util/datasets.py)
    crop_fraction: float = 0.875
    # the backbone: of `efficientsam pretrain`, the released EfficientSAM's, of a timm or MAE ViT
    encoder: str | None = path(None, resume="logged")
    # a whole classifier: of `efficientsam consolidate`, or finetuned by MAE's program
    weights: str | None = path(None, resume="logged")

    def __post_init__(self) -> None:
        check_classifier(self.vit, self.pool, self.drop_path, self.crop_fraction)
        if self.classes is not None and self.classes < 2:
            raise ValueError(f"classes={self.classes} must be at least 2")
        if self.weights and self.encoder:
            raise ValueError(
                f"weights={self.weights} holds the encoder already; drop it or "
                f"encoder={self.encoder}"
            )

    def classifier(self, classes: int, labels: tuple[str, ...]) -> ClassifierConfig:
        """Describe the model for a class list."""
        return ClassifierConfig(
            vit=self.vit,
            classes=classes,
            pool=self.pool,
            drop_path=self.drop_path,
            crop_fraction=self.crop_fraction,
            labels=labels,
        )


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(RecipeConfig):
    """`efficientsam classify`: finetuning a pretrained encoder on labelled images."""

    HELP: ClassVar = CommandHelp(
        summary="a classifier on shards of labelled images",
        keys=(
            *("data.train", "data.heldout", "labels.names", "model.encoder", "model.weights"),
            *("model.classes", "run.dir"),
            *TRAINING_KEYS,
        ),
        configs=("downstream/classify_", "data/imagenet", "cluster/", "debug/"),
        example="efficientsam classify -c downstream/classify_ti 'data.train=train/*.tar' \\\n"
        "    'data.heldout=val/*.tar' model.encoder=runs/ti/encoder.safetensors",
    )

    crop: CropConfig = field(default_factory=labelled_crop)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    labels: ClassListConfig = field(default_factory=ClassListConfig)
    model: ClassifyModelConfig = field(default_factory=ClassifyModelConfig)
    optim: FlooredOptimConfig = field(default_factory=classify_optim)
    trainer: TrainerConfig = field(
        # 100 epochs of ImageNet-1K at batch 1024 (paper, 4.1): 1251 steps an epoch
        default_factory=lambda: TrainerConfig(
            max_steps=125_100, global_batch=1024, micro_batch=128, best_metric="heldout/top1"
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.coco.annotations:
            raise ValueError(
                f"data.coco.annotations={self.data.coco.annotations} is for finetuning; "
                "classification reads data.train="
            )
        refuse_unused(self, "in classification, which has no neck", "model.vit.neck_channels")
        if not self.mix.mixes():
            refuse_unused(self, "where nothing is mixed", "mix.group")
        elif self.data.neighbours > 1 and self.mix.group < 2 * self.data.neighbours:
            raise ValueError(
                f"mix.group={self.mix.group} must be at least twice data.neighbours="
                f"{self.data.neighbours}: the same images would be mixed in every epoch"
            )

    def metrics(self) -> tuple[str, ...]:
        """Names of the logged metrics that can choose the best checkpoint."""
        return (*super().metrics(), "heldout/top1", "heldout/top5")

    def files(self) -> dict[str, str | None]:
        """Files that are read, by key."""
        return {
            "model.encoder": self.model.encoder,
            "model.weights": self.model.weights,
            "labels.names": self.labels.names,
        }

    def check_inputs(self) -> None:
        """Check the held-out set, and that micro-batches do not cut groups of mixed images.

        Raises:
            ConfigError: Names the key.
        """
        super().check_inputs()
        check_groups(self.mix, self.trainer)


def check_groups(mix: MixConfig, trainer: TrainerConfig) -> None:
    """Check that no group of mixed images is cut: else ranks and micro-batches changed results.

    Raises:
        ConfigError: With both numbers.
    """
    whole = trainer.micro_batch == trainer.global_batch
    if mix.mixes() and not whole and trainer.micro_batch % mix.group:
        raise ConfigError(
            f"trainer.micro_batch={trainer.micro_batch} (on {trainer.world_size()} ranks) cuts the "
            f"groups of mix.group={mix.group} images that are mixed with each other; it must be a "
            "multiple, or all of trainer.global_batch"
        )
