"""Config of `efficientsam pretrain` and `efficientsam embed-teacher`. Imports no torch."""

from dataclasses import dataclass, field
from typing import ClassVar

from efficientsam_pl.config.command_help import CommandHelp
from efficientsam_pl.config.unused import refuse_unused
from efficientsam_pl.data.config import CropConfig, FeatureStoreConfig
from efficientsam_pl.losses.config import FeatureLossConfig
from efficientsam_pl.models.config import SamiConfig, TeacherConfig
from efficientsam_pl.optim.config import OptimConfig, sami_optim
from efficientsam_pl.training.config import TRAINING_KEYS, RecipeConfig, TrainerConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RecipeConfig):
    """`efficientsam pretrain`: SAMI, stage one."""

    HELP: ClassVar = CommandHelp(
        summary="SAMI on shards of photos",
        keys=(
            *("data.train", "data.heldout", "teacher.weights", "features.dir", "run.dir"),
            *TRAINING_KEYS,
        ),
        configs=("pretrain/", "data/", "cluster/", "debug/"),
        example="efficientsam pretrain -c pretrain/ti 'data.train=shards/*.tar' \\\n"
        "    teacher.weights=sam_vit_h_4b8939.pth run.dir=runs/ti",
    )

    crop: CropConfig = field(default_factory=CropConfig)
    sami: SamiConfig = field(default_factory=SamiConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    features: FeatureStoreConfig = field(default_factory=FeatureStoreConfig)
    loss: FeatureLossConfig = field(default_factory=FeatureLossConfig)
    optim: OptimConfig = field(default_factory=sami_optim)
    trainer: TrainerConfig = field(
        # 400 epochs of ImageNet-1K at batch 4096 (paper, 4.1)
        default_factory=lambda: TrainerConfig(max_steps=125_000, global_batch=4096, micro_batch=256)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_teacher(self)
        if self.sami.decoder == "none":
            _check_distillation(self)
        if self.data.coco.annotations:
            raise ValueError(
                f"data.coco.annotations={self.data.coco.annotations} is for finetuning; "
                "pretraining reads data.train="
            )
        if self.optim.layer_decay is not None:
            raise ValueError(
                f"optim.layer_decay={self.optim.layer_decay} is for finetuning; a fresh encoder's "
                "blocks all have as much to learn"
            )
        if self.features.dir is None:
            keys = ("kind", "views", "seed", "numbers", "grid")
            refuse_unused(self, "without features.dir=", *(f"features.{key}" for key in keys))
        else:
            refuse_unused(self, "with features.dir=", "teacher.overlap")
        if self.teacher.kind == "pixels":
            refuse_unused(self, "with teacher.kind=pixels", "teacher.overlap")
        for kind, key in (("timm", "teacher.timm_name"), ("sam", "teacher.output")):
            if self.teacher.kind != kind:
                refuse_unused(self, f"with teacher.kind={self.teacher.kind}", key)

    def metrics(self) -> tuple[str, ...]:
        """Names of the logged metrics that can choose the best checkpoint."""
        return (*super().metrics(), *self.loss.metrics())

    def files(self) -> dict[str, str | None]:
        """Files that are read, by key."""
        return {"teacher.weights": self.teacher.weights}


def _check_distillation(config: PretrainConfig) -> None:
    """Raise ValueError where plain distillation has no target or no tokens to learn from."""
    if config.teacher.kind == "pixels":
        raise ValueError(
            "sami.decoder=none needs a teacher: teacher.kind=pixels is MAE's target, whose pixels "
            "the student sees"
        )
    if config.loss.tokens != "all":
        raise ValueError(
            f"loss.tokens={config.loss.tokens} must be all with sami.decoder=none: no token is "
            "masked"
        )


def _check_teacher(config: PretrainConfig) -> None:
    """Raise ValueError where the teacher contradicts student, stored features or trainer."""
    teacher, student, features = config.teacher, config.sami.student, config.features
    if teacher.kind == "pixels":
        if features.dir is not None:
            raise ValueError(
                f"features.dir={features.dir} has no meaning with teacher.kind=pixels: the photo "
                "is its own target"
            )
        return
    if teacher.grid() < student.grid():
        raise ValueError(
            f"teacher.image_size={teacher.image_size} gives {teacher.grid()} tokens a side, fewer "
            f"than the student's {student.grid()} (sami.student.image_size={student.image_size})"
        )
    if teacher.sharding == "sharded" and config.trainer.strategy != "fsdp":
        raise ValueError(
            f"teacher.sharding=sharded needs trainer.strategy=fsdp, which is "
            f"{config.trainer.strategy}"
        )
    if features.dir is not None and features.kind == "photos":
        if teacher.kind != "sam":
            raise ValueError(
                f"features.kind=photos needs teacher.kind=sam, which is {teacher.kind}"
            )
        if teacher.grid() % features.grid:
            raise ValueError(
                f"features.grid={features.grid} must divide the teacher's {teacher.grid()} tokens "
                f"a side (teacher.image_size={teacher.image_size})"
            )
