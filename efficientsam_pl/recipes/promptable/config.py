"""Config of `efficientsam finetune`. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from efficientsam_pl.config.command_help import CommandHelp
from efficientsam_pl.config.fields import on_resume
from efficientsam_pl.config.load import ConfigError
from efficientsam_pl.config.unused import refuse_unused
from efficientsam_pl.data.config import MaskSelectionConfig
from efficientsam_pl.evaluation.config import ValidationConfig
from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.models.config import ModelConfig
from efficientsam_pl.models.prompt_kinds import PromptNeeds
from efficientsam_pl.models.registry import check_prompt_needs
from efficientsam_pl.optim.config import OptimConfig, finetune_optim
from efficientsam_pl.prompts.config import PromptingConfig
from efficientsam_pl.training.config import TRAINING_KEYS, RecipeConfig, TrainerConfig

_WEIGHTS = ("weights", "encoder", "decoder")  # keys of ModelConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RecipeConfig):
    """`efficientsam finetune`: prompts to masks, stage two."""

    HELP: ClassVar = CommandHelp(
        summary="prompts to masks on shards",
        keys=(
            *("data.train", "data.heldout", "data.coco.annotations", "data.coco.images"),
            *("model.name", "model.weights", "model.encoder", "run.dir"),
            *TRAINING_KEYS,
        ),
        configs=("finetune/", "data/sa1b", "cluster/", "debug/"),
        example="efficientsam finetune -c finetune/ti 'data.train=shards/sa_*.tar' \\\n"
        "    model.encoder=runs/ti/encoder.safetensors run.dir=runs/ti_masks",
    )
    RENAMED_KEYS: ClassVar = {"validation.pictured": "trainer.visualized_images"}

    masks: MaskSelectionConfig = field(default_factory=MaskSelectionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    prompts: PromptingConfig = field(default_factory=PromptingConfig)
    loss: MaskLossConfig = field(default_factory=MaskLossConfig)
    optim: OptimConfig = field(default_factory=finetune_optim)
    trainer: TrainerConfig = field(
        # 5 epochs of SA-1B at batch 128 (paper, 4.1)
        default_factory=lambda: TrainerConfig(
            max_steps=437_000, global_batch=128, micro_batch=8, best_metric="heldout/box_miou"
        )
    )
    validation: ValidationConfig = field(
        default_factory=ValidationConfig, metadata=on_resume("free")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts.clicks() > self.masks.clicks:
            raise ValueError(
                f"prompts.max_clicks={self.prompts.max_clicks} must not exceed "
                f"masks.clicks={self.masks.clicks}, the points drawn for each mask"
            )
        refuse_unused(
            self,
            "in finetuning, which draws at every validation: trainer.validate_every_steps=",
            "trainer.picture_every_steps",
        )
        rounds = self.prompts.rounds
        if rounds != "interactive":  # prompts.max_clicks may stand below an interactive recipe
            reason = f"with prompts.rounds={rounds}"
            refuse_unused(self, reason, "prompts.corrections", "prompts.repeats")
        data = self.data
        if data.coco.annotations and (data.train or data.mixture or data.heldout):
            raise ValueError(
                f"data.coco.annotations={data.coco.annotations} stands instead of data.train=, "
                "data.mixture= and data.heldout=, which must not be given"
            )

    def metrics(self) -> tuple[str, ...]:
        """Names of the logged metrics that can choose the best checkpoint."""
        return (*super().metrics(), *self.validation.metrics())

    def needed(self) -> dict[str, str]:
        """Values of the keys that have no default."""
        shards = super().needed()["data.train"]
        return {"data.train": shards or self.data.coco.annotations or ""}

    def files(self) -> dict[str, str | None]:
        """Files that are read, by key."""
        return {f"model.{key}": getattr(self.model, key) for key in _WEIGHTS}

    def check_inputs(self) -> None:
        """Check the held-out set, the prompts that the model takes, frozen parts, COCO's files.

        Raises:
            ConfigError: Names the key.
        """
        super().check_inputs()
        _check_prompts(self)
        for key, path in self.data.coco.paths().items():
            if path is not None and "://" not in path and not Path(path).exists():
                raise ConfigError(f"data.coco.{key}: no such file or folder: {path}")
        _check_frozen(self.model)


def _check_frozen(model: ModelConfig) -> None:
    """Raise ConfigError where random weights would be frozen."""
    sources = model.sources()
    for part in model.freeze.parts():
        if sources[part] is None:
            key = "encoder" if part == "image_encoder" else "decoder"
            raise ConfigError(
                f"model.freeze.{part}=true keeps random weights, since neither model.weights= nor "
                f"model.{key}= names a file; name one, or let it learn: model.freeze.{part}=false"
            )


def _check_prompts(config: FinetuneConfig) -> None:
    """Raise ConfigError where the model does not take the prompts of this config."""
    prompts, validation = config.prompts, config.validation
    interactive = prompts.rounds == "interactive"
    points_key = "prompts.corrections" if interactive else "prompts.max_clicks"
    needs = {
        "prompts.rounds=interactive": _corrections(interactive),
        "validation.later_clicks=corrections": _corrections(
            validation.later_clicks == "corrections"
        ),
        points_key: PromptNeeds(points=prompts.points()),
        "validation.clicks": PromptNeeds(points=max(validation.clicks)),
    }
    hint = "; efficient_sam_ti_interactive does"
    for key, need in needs.items():
        check_prompt_needs(config.model.name, key, need, hint if need.mask_prompts else "")


def _corrections(wanted: bool) -> PromptNeeds:
    return PromptNeeds(negative_clicks=wanted, mask_prompts=wanted)
