"""Config of `efficientsam semantic`. Imports no torch."""

from dataclasses import dataclass, field
from typing import ClassVar

from efficientsam_pl.config.command_help import CommandHelp
from efficientsam_pl.config.fields import path
from efficientsam_pl.config.unused import refuse_unused
from efficientsam_pl.data.class_config import ClassListConfig
from efficientsam_pl.data.semantic_config import SemanticCropConfig
from efficientsam_pl.losses.config import SegmentLossConfig
from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.semantic.config import (
    Features,
    MaskHeadConfig,
    SemanticConfig,
    check_classes,
    check_segmenter,
)
from efficientsam_pl.optim.config import PolyOptimConfig, semantic_optim
from efficientsam_pl.training.config import TRAINING_KEYS, RecipeConfig, TrainerConfig


@dataclass(frozen=True, kw_only=True)
class SemanticModelConfig:
    """The segmenter, and the file of its initial weights; without one it starts from scratch."""

    vit: EncoderConfig = field(default_factory=lambda: EncoderConfig(image_size=512))
    classes: int | None = None  # size of the head; None: the number of names in the class list
    head: MaskHeadConfig = field(default_factory=MaskHeadConfig)
    # Source of the maps of strides 4 to 32; the paper does not say, and Mask2Former has no
    # plain ViT. pyramid: the last block's map, as in ViTDet; blocks: one of feature_blocks each,
    # as BEiT and MAE feed their heads
    features: Features = "pyramid"
    feature_blocks: tuple[int, ...] = (3, 5, 7, 11)  # finest first; MAE's for ViT-B
    feature_channels: int = 256  # of every map (ViTDet)
    # probability at the last block, rising linearly; open in the paper (MAE's segmentation: .1)
    drop_path: float = 0.1
    # the backbone: of `efficientsam pretrain`, the released EfficientSAM's, of a timm or MAE ViT
    encoder: str | None = path(None, resume="logged")
    # a whole segmenter: of `efficientsam consolidate`, or in Mask2Former's names
    weights: str | None = path(None, resume="logged")

    def __post_init__(self) -> None:
        check_segmenter(self.vit, self.features, self.feature_blocks, self.drop_path)
        if self.classes is not None:
            check_classes(self.classes)
        if self.weights and self.encoder:
            raise ValueError(
                f"weights={self.weights} holds the encoder already; drop it or "
                f"encoder={self.encoder}"
            )

    def segmenter(self, classes: int, labels: tuple[str, ...]) -> SemanticConfig:
        """Describe the model for a class list."""
        return SemanticConfig(
            vit=self.vit,
            classes=classes,
            head=self.head,
            features=self.features,
            feature_blocks=self.feature_blocks,
            feature_channels=self.feature_channels,
            drop_path=self.drop_path,
            labels=labels,
        )


@dataclass(frozen=True, kw_only=True)
class SemanticTrainingConfig(RecipeConfig):
    """`efficientsam semantic`: Mask2Former on a pretrained encoder."""

    HELP: ClassVar = CommandHelp(
        summary="a semantic segmenter on shards of images with label maps",
        keys=(
            *("data.train", "data.heldout", "labels.names", "model.encoder", "model.weights"),
            *("model.classes", "run.dir"),
            *TRAINING_KEYS,
        ),
        configs=("downstream/mask2former_", "cluster/", "debug/"),
        example="efficientsam semantic -c downstream/mask2former_ti 'data.train=train/*.tar' \\\n"
        "    'data.heldout=val/*.tar' model.encoder=runs/ti/encoder.safetensors",
    )

    crop: SemanticCropConfig = field(default_factory=SemanticCropConfig)
    labels: ClassListConfig = field(default_factory=ClassListConfig)
    model: SemanticModelConfig = field(default_factory=SemanticModelConfig)
    loss: SegmentLossConfig = field(default_factory=SegmentLossConfig)
    optim: PolyOptimConfig = field(default_factory=semantic_optim)
    trainer: TrainerConfig = field(
        # 160 k steps at batch 16 (paper, 4.1)
        default_factory=lambda: TrainerConfig(
            max_steps=160_000,
            global_batch=16,
            micro_batch=2,
            validate_every_steps=5000,
            best_metric="heldout/miou",
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.coco.annotations:
            raise ValueError(
                f"data.coco.annotations={self.data.coco.annotations} is for finetuning; "
                "semantic segmentation reads data.train="
            )
        if self.trainer.compile == "step":
            raise ValueError(
                "trainer.compile=step cannot capture a step of semantic segmentation, whose "
                "matching reads the costs on the host; choose compile=regions"
            )
        where = "in semantic segmentation, which has no neck"
        refuse_unused(self, where, "model.vit.neck_channels")
        if self.model.features == "pyramid":
            refuse_unused(self, "with model.features=pyramid", "model.feature_blocks")

    def metrics(self) -> tuple[str, ...]:
        """Names of the logged metrics that can choose the best checkpoint."""
        return (*super().metrics(), "heldout/miou")

    def files(self) -> dict[str, str | None]:
        """Files that are read, by key."""
        return {
            "model.encoder": self.model.encoder,
            "model.weights": self.model.weights,
            "labels.names": self.labels.names,
        }
