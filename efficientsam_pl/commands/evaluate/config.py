"""Config of `efficientsam evaluate`. Imports no torch."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from efficientsam_pl.config.command_help import CommandHelp
from efficientsam_pl.config.fields import path
from efficientsam_pl.config.unused import refuse_unused
from efficientsam_pl.evaluation.config import DetectorConfig, check_protocols, protocol_clicks
from efficientsam_pl.models.config import LoadedModelConfig
from efficientsam_pl.models.prompt_kinds import PromptNeeds
from efficientsam_pl.models.registry import check_prompt_needs


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """`efficientsam evaluate`: mIoU by named protocols and AP with a detector's boxes."""

    HELP: ClassVar = CommandHelp(
        summary="mIoU by named protocols and AP with boxes",
        keys=(
            *("model.name", "model.weights", "kind", "annotations", "images", "shards"),
            *("protocols", "detector.results", "baseline", "photos", "accelerator", "out"),
        ),
        configs=("evaluate/",),
        example="efficientsam evaluate -c evaluate/coco model.weights=model.safetensors \\\n"
        "    annotations=instances_val2017.json images=val2017",
    )

    model: LoadedModelConfig = field(default_factory=LoadedModelConfig)
    kind: Literal["coco", "lvis", "shards"] = "shards"  # of the set
    annotations: str | None = path(None)  # coco, lvis: the annotation file
    # coco, lvis: the images' folder; LVIS finds train2017 and val2017
    images: str | None = path(None)
    shards: str = path("", pattern=True)  # shards: pattern of the shards to score
    # coco: whether annotations with iscrowd are objects too, as CVAT writes brush masks
    crowds: Literal["ignore", "objects"] = "ignore"
    # the frame of the annotations where the stated size does not decide; ignore: pixels as stored,
    # which a viewer shows turned by their EXIF orientation
    exif_orientation: Literal["apply", "ignore"] = "apply"
    # box, click_center, click_random_K, click_iterative_K (paper, 4.3)
    protocols: tuple[str, ...] = ("box", "click_random_1", "click_random_3")
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    # scored instead of a model: the prompt's box filled, or the annotations themselves
    baseline: Literal["none", "filled_box", "ground_truth"] = "none"
    prompts_at_once: int = 32  # of a photo; memory, not results
    photos: int | None = None  # the first so many; None: all
    seed: int = 0  # of the clicks
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"  # auto: a GPU where there is one
    precision: Literal["fp32", "bf16"] = "fp32"  # of the computation, as trainer.precision
    # the result, a .json file; photos that are done lie in a folder beside it, evaluation.parts/
    out: str = path("evaluation.json", written="file")
    fresh: bool = False  # throw away photos that are done
    store_patience_s: float = 300.0  # a store that fails is tried again for so long; then exit 75
    plots: bool = False  # histograms and curves as pictures beside `out`

    def __post_init__(self) -> None:
        check_protocols(self.protocols)
        if "://" in self.out:
            raise ValueError(f"out={self.out} must be a local file")
        if not self.out.endswith(".json"):
            raise ValueError(f"out={self.out} must end in .json")
        for key in ("prompts_at_once", "photos"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}={value} must be at least 1")
        if self.store_patience_s < 0:
            raise ValueError(f"store_patience_s={self.store_patience_s} must not be negative")
        self._check_set()
        if not self.detector.results:
            keys = (f"detector.{key}" for key in ("rule", "box_format", "max_unusable"))
            refuse_unused(self, "without detector.results=", *keys)
        if self.baseline != "none" and self.precision != "fp32":
            raise ValueError(
                f"precision={self.precision} has no effect with baseline={self.baseline}"
            )
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
        """Raise ValueError where keys name two sets, or one has no effect."""
        if self.crowds != "ignore" and self.kind != "coco":
            raise ValueError(f"crowds={self.crowds} needs kind=coco, not {self.kind}")
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

    def check_inputs(self) -> None:
        """Check that the named model takes the prompts of every protocol.

        Raises:
            ConfigError: Names the key.
        """
        if self.baseline != "none":
            return
        name = self.model.name
        if name is None:
            return  # its weights file is read later, and says the same
        for protocol in self.protocols:
            points = protocol_clicks(protocol)
            corrects = "iterative" in protocol and points > 1
            needs = PromptNeeds(points=points, negative_clicks=corrects)
            check_prompt_needs(name, f"protocols={protocol}", needs)
        if self.detector.second_pass:
            check_prompt_needs(name, "detector.second_pass=true", PromptNeeds(mask_prompts=True))
