"""Config of `efficientsam detect`. Imports no torch."""

from dataclasses import dataclass, field
from typing import ClassVar

from efficientsam_pl.config.command_help import CommandHelp
from efficientsam_pl.config.fields import path
from efficientsam_pl.config.unused import refuse_unused
from efficientsam_pl.data.detection_config import JitterConfig
from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.detection.config import (
    DetectorConfig,
    ProposalConfig,
    RegionConfig,
    check_detector,
    vitdet_encoder,
)
from efficientsam_pl.optim.config import DetectionOptimConfig, detect_optim
from efficientsam_pl.training.config import TRAINING_KEYS, RecipeConfig, TrainerConfig


@dataclass(frozen=True, kw_only=True)
class DetectModelConfig:
    """The detector, and the file of its initial weights; without one it starts from scratch."""

    # detectron2's ViTDet backbone: windows and relative positions, which the paper, whose numbers
    # are ViTDet's, does not mention. EfficientSAM's own encoder is global_attention=all and
    # relative_positions=none
    vit: EncoderConfig = field(default_factory=vitdet_encoder)
    channels: int = 256  # of the pyramid and the heads (ViTDet)
    # probability at the last block, rising linearly (ViTDet: .1 for B). Open for Ti and S
    drop_path: float = 0.1
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    regions: RegionConfig = field(default_factory=RegionConfig)
    # the backbone: of `efficientsam pretrain`, the released EfficientSAM's, of a timm or MAE ViT
    encoder: str | None = path(None, resume="logged")
    # a whole detector: of `efficientsam consolidate`, or of detectron2's program
    weights: str | None = path(None, resume="logged")

    def __post_init__(self) -> None:
        check_detector(self.vit, self.channels, self.drop_path)
        if self.weights and self.encoder:
            raise ValueError(
                f"weights={self.weights} holds the encoder already; drop it or "
                f"encoder={self.encoder}"
            )

    def detector(self, labels: tuple[str, ...], category_ids: tuple[int, ...]) -> DetectorConfig:
        """Describe the model for a list of categories."""
        return DetectorConfig(
            vit=self.vit,
            classes=len(labels),
            labels=labels,
            category_ids=category_ids,
            channels=self.channels,
            drop_path=self.drop_path,
            proposals=self.proposals,
            regions=self.regions,
        )


@dataclass(frozen=True, kw_only=True)
class DetectConfig(RecipeConfig):
    """`efficientsam detect`: detection and instance segmentation with a pretrained encoder."""

    HELP: ClassVar = CommandHelp(
        summary="a detector of objects with boxes, masks and classes",
        keys=(
            *("data.train", "data.heldout", "model.encoder", "model.weights", "run.dir"),
            *TRAINING_KEYS,
        ),
        configs=("downstream/vitdet_", "cluster/", "debug/"),
        example="efficientsam detect -c downstream/vitdet_ti 'data.train=train/*.tar' \\\n"
        "    'data.heldout=val/*.tar' model.encoder=runs/ti/encoder.safetensors",
    )

    jitter: JitterConfig = field(default_factory=JitterConfig)
    model: DetectModelConfig = field(default_factory=DetectModelConfig)
    optim: DetectionOptimConfig = field(default_factory=detect_optim)
    trainer: TrainerConfig = field(
        # 100 epochs of COCO at batch 64 (paper, 4.1; detectron2 counts 1843.75 steps an epoch)
        default_factory=lambda: TrainerConfig(
            max_steps=184_375, global_batch=64, micro_batch=1, best_metric="heldout/box_ap"
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.coco.annotations:
            raise ValueError(
                f"data.coco.annotations={self.data.coco.annotations} is for finetuning; detection "
                "reads data.train=, shards of `efficientsam pack coco`"
            )
        if self.trainer.compile == "step":
            raise ValueError(
                "trainer.compile=step cannot capture a detector's step, whose shapes depend on the "
                "data; choose trainer.compile=regions or blocks"
            )
        refuse_unused(self, "in detection, which has no neck", "model.vit.neck_channels")
        if self.optim.milestones and self.optim.milestones[-1] >= self.trainer.max_steps:
            raise ValueError(
                f"optim.milestones={list(self.optim.milestones)} must be below trainer.max_steps="
                f"{self.trainer.max_steps}"
            )

    def metrics(self) -> tuple[str, ...]:
        """Names of the logged metrics that can choose the best checkpoint."""
        scores = ("box_ap", "box_ap50", "mask_ap", "mask_ap50")
        return (*super().metrics(), *(f"heldout/{score}" for score in scores))

    def files(self) -> dict[str, str | None]:
        """Files that are read, by key."""
        return {"model.encoder": self.model.encoder, "model.weights": self.model.weights}
