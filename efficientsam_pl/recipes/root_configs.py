"""Root configs, one per command, and what must be given in them. Imports no torch.

Each part's dataclass lies beside the part; `loading` lays YAML files and overrides over them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from efficientsam_pl.config.fields import PathKind, path, path_kind
from efficientsam_pl.config.load import ConfigError, as_dict, dump, from_dict, load
from efficientsam_pl.config.printing import commented
from efficientsam_pl.data.config import (
    CropConfig,
    DataConfig,
    FeatureStoreConfig,
    MaskSelectionConfig,
)
from efficientsam_pl.evaluation.config import (
    DetectorConfig,
    ValidationConfig,
    check_protocols,
    protocol_clicks,
)
from efficientsam_pl.losses.config import FeatureLossConfig, MaskLossConfig
from efficientsam_pl.models.config import (
    LoadedModelConfig,
    ModelConfig,
    SamiConfig,
    TeacherConfig,
)
from efficientsam_pl.models.prompt_kinds import PromptNeeds, unmet_needs
from efficientsam_pl.models.registry import segmenter_config
from efficientsam_pl.optim.config import OptimConfig, finetune_optim, sami_optim
from efficientsam_pl.prompts.config import PromptingConfig
from efficientsam_pl.recipes.config_checks import (
    check_best_metric,
    check_evaluation_keys,
    check_finetuning_keys,
    check_pretraining_keys,
    check_teacher,
    refuse_unused,
)
from efficientsam_pl.storage.outputs import check_output
from efficientsam_pl.training.config import InterruptionConfig, RunConfig, TrainerConfig

__all__ = [
    "ConfigError",
    "EvaluateConfig",
    "FinetuneConfig",
    "PretrainConfig",
    "as_dict",
    "check_matches",
    "commented",
    "dump",
    "from_dict",
    "load",
    "require",
    "segmenter_config",
]
_WEIGHTS = ("weights", "encoder", "decoder")  # keys of ModelConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """`efficientsam pretrain`: SAMI, stage one."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
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
    interruption: InterruptionConfig = field(default_factory=InterruptionConfig)

    def __post_init__(self) -> None:
        _check_warmup(self.optim, self.trainer)
        check_teacher(self)
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
        check_best_metric(self.trainer.best_metric, self.metrics())
        check_pretraining_keys(self)

    def metrics(self) -> tuple[str, ...]:
        """Names that a validation can choose the best checkpoint by."""
        return ("heldout/loss", "train/loss", *self.loss.metrics())

    def needed(self) -> dict[str, str]:
        """Keys without a default."""
        return {"data.train": self.data.train or "".join(s.shards for s in self.data.mixture)}

    def files(self) -> dict[str, str | None]:
        """Files that are read, by key."""
        return {"teacher.weights": self.teacher.weights}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """`efficientsam finetune`: prompts to masks, stage two."""

    RENAMED_KEYS: ClassVar = {"validation.pictured": "trainer.visualized_images"}

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    masks: MaskSelectionConfig = field(default_factory=MaskSelectionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    prompts: PromptingConfig = field(default_factory=PromptingConfig)
    loss: MaskLossConfig = field(default_factory=MaskLossConfig)
    optim: OptimConfig = field(default_factory=finetune_optim)
    trainer: TrainerConfig = field(
        # 5 epochs of SA-1B at batch 128 (paper, 4.1)
        default_factory=lambda: TrainerConfig(
            max_steps=437_000, global_batch=128, micro_batch=2, best_metric="heldout/box_miou"
        )
    )
    interruption: InterruptionConfig = field(default_factory=InterruptionConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        _check_warmup(self.optim, self.trainer)
        if self.prompts.clicks() > self.masks.clicks:
            raise ValueError(
                f"prompts.max_clicks={self.prompts.max_clicks} must not exceed "
                f"masks.clicks={self.masks.clicks}, the points drawn for each mask"
            )
        check_best_metric(self.trainer.best_metric, self.metrics())
        check_finetuning_keys(self)
        data = self.data
        if data.coco.annotations and (data.train or data.mixture or data.heldout):
            raise ValueError(
                f"data.coco.annotations={data.coco.annotations} stands instead of data.train=, "
                "data.mixture= and data.heldout=, which must not be given"
            )

    def metrics(self) -> tuple[str, ...]:
        """Names that a validation can choose the best checkpoint by."""
        return ("heldout/loss", "train/loss", *self.validation.metrics())

    def needed(self) -> dict[str, str]:
        """Keys without a default."""
        named = self.data.train or "".join(s.shards for s in self.data.mixture)
        return {"data.train": named or self.data.coco.annotations or ""}

    def files(self) -> dict[str, str | None]:
        """Files that are read, by key."""
        return {f"model.{key}": getattr(self.model, key) for key in _WEIGHTS}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """`efficientsam evaluate`: mIoU by named protocols and AP with a detector's boxes."""

    model: LoadedModelConfig = field(default_factory=LoadedModelConfig)
    kind: Literal["coco", "lvis", "shards"] = "shards"  # of the set
    annotations: str | None = path(None)  # coco, lvis: the annotation file
    # coco, lvis: the images' folder; LVIS finds train2017 and val2017
    images: str | None = path(None)
    shards: str = path("", pattern=True)  # shards: pattern of the shards to score
    # box, click_center, click_random_K, click_iterative_K (paper, 4.3)
    protocols: tuple[str, ...] = ("box", "click_random_1", "click_random_3")
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    # What is scored instead of a model: the prompt's box filled, or the annotations themselves
    baseline: Literal["none", "filled_box", "ground_truth"] = "none"
    prompts_at_once: int = 32  # of a photo; memory, not results
    photos: int | None = None  # the first so many; None: all
    seed: int = 0  # of the clicks
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"  # auto: a GPU where there is one
    precision: Literal["fp32", "bf16"] = "fp32"  # of the computation, as trainer.precision
    # the result, a .json file; photos that are done lie in a folder beside it, evaluation.parts/
    out: str = path("evaluation.json", written="file")
    fresh: bool = False  # throw away photos that are done
    plots: bool = False  # histograms and curves as pictures beside `out`

    def __post_init__(self) -> None:
        check_protocols(self.protocols)
        if not self.out.endswith(".json"):
            raise ValueError(f"out={self.out} must end in .json")
        for key in ("prompts_at_once", "photos"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}={value} must be at least 1")
        self._check_set()
        check_evaluation_keys(self)
        if self.baseline != "none" and self.model.weights:
            raise ValueError(
                f"baseline={self.baseline} stands instead of a model, not beside "
                f"model.weights={self.model.weights}"
            )
        clicks = [name for name in self.protocols if name != "box"]
        if self.baseline == "filled_box" and clicks:
            raise ValueError(
                f"baseline=filled_box fills boxes and knows no clicks, so not {clicks[0]}: give "
                "protocols=[box]"
            )
        if not self.protocols and not self.detector.results:
            raise ValueError("protocols=[] and no detector.results= leave nothing to ask")

    def _check_set(self) -> None:
        """Raises ValueError where keys name two sets."""
        if self.kind == "shards":
            given = {"annotations": self.annotations, "images": self.images}
            given["detector.results"] = self.detector.results
            for key, value in given.items():
                if value:
                    raise ValueError(f"{key}={value} needs kind=coco or kind=lvis, not shards")
        elif self.shards:
            raise ValueError(f"shards={self.shards} needs kind=shards, not {self.kind}")

    def needed(self) -> dict[str, str]:
        """Keys without a default."""
        needed = {"shards": self.shards}
        if self.kind != "shards":
            needed = {"annotations": self.annotations or "", "images": self.images or ""}
        if self.baseline == "none":
            needed["model.weights"] = self.model.weights or ""
        return needed

    def files(self) -> dict[str, str | None]:
        """Files that are read, by key."""
        return {"model.weights": self.model.weights, "detector.results": self.detector.results}


def require(config: PretrainConfig | FinetuneConfig | EvaluateConfig) -> None:
    """What has no default must be given, and what is named must be there, before a command runs.

    Raises:
        ConfigError: Names the key.
    """
    for key, value in config.needed().items():
        if not value:
            raise ConfigError(f"{key}= must be given")
    for key, file in config.files().items():
        if file is not None and not Path(file).is_file():
            raise ConfigError(f"{key}: no such file: {file}")
    if not isinstance(config, EvaluateConfig):
        _check_heldout(config)
    if isinstance(config, FinetuneConfig):
        _check_prompts(config)
        for key, path in config.data.coco.paths().items():
            if path is not None and "://" not in path and not Path(path).exists():
                raise ConfigError(f"data.coco.{key}: no such file or folder: {path}")
        _check_frozen(config.model)
    elif isinstance(config, EvaluateConfig) and config.baseline == "none":
        _check_protocols(config)
    for key, value, kind in _paths(config):
        if kind.written is not None:
            check_output(key, value, kind.written)
        elif kind.pattern:
            check_matches(value, f"{key}: no shard")


def check_matches(pattern: str, none: str = "no shard") -> None:
    """Raises ConfigError, which begins with `none`, where no file here matches a pattern.

    Whether one does in a store is seen when it is read; so is a shard that is gone from a set.
    """
    from efficientsam_pl.storage.files import is_local, list_files, patterns

    every = patterns(pattern)
    if all(map(is_local, every)) and not list_files(pattern):
        raise ConfigError(f"{none} matches {pattern!r}")


def _paths(config: Any, prefix: str = "") -> Iterator[tuple[str, str, PathKind]]:
    """Full key, value and kind of all paths that a config names."""
    for part in fields(config):
        value, kind, key = getattr(config, part.name), path_kind(part), f"{prefix}{part.name}"
        if kind is not None and value:
            yield key, value, kind
        for place, one in enumerate(value if isinstance(value, tuple) else ()):
            if is_dataclass(one):
                yield from _paths(one, f"{key}[{place}].")
        if is_dataclass(value):
            yield from _paths(value, f"{key}.")


def _check_heldout(config: PretrainConfig | FinetuneConfig) -> None:
    """Raises ConfigError where a metric is to choose a checkpoint, and nothing is validated."""
    if config.trainer.best_metric is None or config.data.validates():
        return
    try:
        refuse_unused(config, "without data.heldout=", "trainer.best_metric")
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_frozen(model: ModelConfig) -> None:
    """Raises ConfigError where random weights would stay as they are."""
    sources = model.sources()
    for part in model.freeze.parts():
        if sources[part] is None:
            own = "encoder" if part == "image_encoder" else "decoder"
            raise ConfigError(
                f"model.freeze.{part}=true keeps random weights, since neither model.weights= nor "
                f"model.{own}= names a file; name one, or let it learn: model.freeze.{part}=false"
            )


def _check_prompts(config: FinetuneConfig) -> None:
    """Raises ConfigError where the model does not know the prompts that it will be given."""
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
        _check_need(config.model.name, key, need, hint if need.mask_prompts else "")


def _corrections(wanted: bool) -> PromptNeeds:
    return PromptNeeds(negative_clicks=wanted, mask_prompts=wanted)


def _check_protocols(config: EvaluateConfig) -> None:
    """Raises ConfigError where a protocol needs what the named model does not know."""
    name = config.model.name
    if name is None:
        return  # its weights file is read later, and says the same
    for protocol in config.protocols:
        points = protocol_clicks(protocol)
        corrects = "iterative" in protocol and points > 1
        needs = PromptNeeds(points=points, negative_clicks=corrects)
        _check_need(name, f"protocols={protocol}", needs)
    if config.detector.second_pass:
        _check_need(name, "detector.second_pass=true", PromptNeeds(mask_prompts=True))


def _check_need(name: str, key: str, needs: PromptNeeds, hint: str = "") -> None:
    unmet = unmet_needs(segmenter_config(name).prompts, needs, f"model.name={name}")
    if unmet is not None:
        raise ConfigError(f"{key} {unmet}{hint}")


def _check_warmup(optim: OptimConfig, trainer: TrainerConfig) -> None:
    if not optim.warmup_steps < trainer.max_steps:
        raise ValueError(
            f"optim.warmup_steps={optim.warmup_steps} must be below "
            f"trainer.max_steps={trainer.max_steps}"
        )
