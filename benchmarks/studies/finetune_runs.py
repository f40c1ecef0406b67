"""Shared parts of the finetuning studies: config of a small segmenter, training, scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.studies.coco_folders import PackedImages, data_folder
from efficientsam_pl.commands import consolidate
from efficientsam_pl.config.load import dump, from_dict
from efficientsam_pl.data.dataloaders import AnnotatedImage, annotated_images
from efficientsam_pl.data.datasets import image_sources
from efficientsam_pl.data.packing.coco import coco_images, read_coco
from efficientsam_pl.data.packing.images import MaskedImage, limit_side, pack_images
from efficientsam_pl.data.packing.split import split_heldout
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.evaluation.config import ValidationConfig
from efficientsam_pl.evaluation.evaluator import validation_evaluator
from efficientsam_pl.evaluation.metrics.reachable import grid_ious
from efficientsam_pl.evaluation.prompt_metrics import ImageScores, Scores
from efficientsam_pl.geometry import Resize
from efficientsam_pl.inference.evaluator_adapter import EvaluatorModel, GridValues
from efficientsam_pl.inference.hub import load_model
from efficientsam_pl.mask_coverage import half_covered
from efficientsam_pl.mask_overlap import mask_iou
from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.promptable.recipe import PromptableRecipe, starting_model
from efficientsam_pl.records import CorruptSample
from efficientsam_pl.rle import decode, run_lengths
from efficientsam_pl.training.train import train

MINI = ("coco/COCO-MINI/annotations/instances_val2017.json", "coco/COCO-MINI/val2017")
# All objects have the same weight in the mean IoU, and most of COCO's are small; dice accounts for
# that, a mean over pixels does not. SAM's weights are 20 and 1
LOSS = {"focal": 20.0, "dice": 5.0}
_HEAD_WIDTH = 32  # channels of the encoder
_DECODER_HEAD_WIDTH = 16


@dataclass(frozen=True)
class Setting:
    """Sizes of a study: small enough for two cores."""

    steps: int
    side: int = 256
    width: int = 128
    depth: int = 4
    neck: int = 64
    candidates: int = 3
    batch: int = 2
    peak_lr: float = 2e-3
    masks: int = 8  # per image
    accelerator: str = "cpu"

    def model(self, interactive: bool = False) -> SegmenterConfig:
        """Config of a segmenter that also gets its prompts as images, to learn in few steps."""
        known = {"negative_clicks": True, "mask_prompts": True, "min_points": 6, "max_points": 12}
        return from_dict(
            SegmenterConfig,
            {
                "encoder": {
                    "width": self.width,
                    "depth": self.depth,
                    "heads": self.width // _HEAD_WIDTH,
                    "image_size": self.side,
                    "neck_channels": self.neck,
                    "position_grid": 7,  # that of a pretrained student with 112 pixels
                },
                "prompts": {
                    "position_scale": 0.25,
                    "drawn_prompts": True,
                    **(known if interactive else {}),
                },
                "decoder": {
                    "candidates": self.candidates,
                    "heads": self.neck // _DECODER_HEAD_WIDTH,
                    "mlp_width": 256,
                    "iou_head_width": 64,
                },
            },
        )


@dataclass(frozen=True)
class Trained:
    """A finished run: its folder and its model."""

    folder: Path
    model: Segmenter


def packed_mini(folder: Path, long_side: int, images_learned: int | None = None) -> PackedImages:
    """Pack COCO-MINI's images, four fifths for training and one held out, by name.

    `images_learned`: maximum number of training images; None: all.
    """
    annotations, images = (str(data_folder() / part) for part in MINI)
    photos = list(coco_images(read_coco(annotations, images).entries, []))
    masked = [annotated for annotated in photos if any(not a.crowd for a in annotated.annotations)]
    sides: dict[str, Sequence[MaskedImage]] = dict(
        zip(("train", "heldout"), split_heldout([p.key for p in masked], masked, 0.2), strict=True)
    )
    sides["train"] = sides["train"][:images_learned]
    for name, section in sides.items():
        pack_images([limit_side(annotated, long_side) for annotated in section], folder, name)
    patterns = (f"{folder}/train-*.tar", f"{folder}/heldout-*.tar")
    return PackedImages(*patterns, len(sides["train"]), len(sides["heldout"]))


def finetuned(
    setting: Setting,
    sides: PackedImages,
    folder: Path,
    seed: int,
    changes: Mapping[str, Mapping[str, Any]],
    interactive: bool = False,
) -> Trained:
    """Run `efficientsam finetune` from scratch, with changes of its config."""
    folder.mkdir(parents=True, exist_ok=True)
    name = folder / "model.yaml"
    name.write_text(dump(setting.model(interactive)))
    values: dict[str, dict[str, Any]] = {
        "run": {"dir": str(folder), "seed": seed, "resume": "none"},
        "data": {"train": sides.train, "heldout": sides.heldout, "workers": 0},
        "masks": {"masks_per_image": setting.masks, "clicks": 1, "max_area": 1.0},
        "prompts": {"max_clicks": 1},
        "loss": LOSS,
        "optim": {
            "peak_lr": setting.peak_lr,
            "warmup_steps": max(1, setting.steps // 20),
            "clip_norm": 1.0,
        },
        "trainer": {
            "accelerator": setting.accelerator,
            "max_steps": setting.steps,
            "global_batch": setting.batch,
            "micro_batch": setting.batch,
            "validate_every_steps": max(1, setting.steps // 4),
            "checkpoint_every_steps": setting.steps,
        },
        "validation": {"clicks": [1]},
    }
    for key, section in changes.items():
        values[key] = {**values.get(key, {}), **section}
    values["model"] = {"name": str(name), **values.get("model", {})}
    train(PromptableRecipe(from_dict(FinetuneConfig, values)))
    return Trained(folder, load_run(folder))


def load_run(folder: Path) -> Segmenter:
    """Load the last weights of a run as users do."""
    return load_model(weights=str(consolidate.run(folder, folder / "model.safetensors")))


def untrained(setting: Setting, folder: Path, seed: int, interactive: bool = False) -> Segmenter:
    """Build the initial model of a run with this seed."""
    folder.mkdir(parents=True, exist_ok=True)
    name = folder / "start.yaml"
    name.write_text(dump(setting.model(interactive)))
    config = from_dict(FinetuneConfig, {"run": {"seed": seed}, "model": {"name": str(name)}})
    return starting_model(config).eval()


@torch.inference_mode()
def scored(
    model: Segmenter,
    pattern: str,
    clicks: tuple[int, ...] = (1,),
    corrected: bool = False,
    smallest: float = 0.0,
    grid_values: GridValues = grid_ious,
) -> Scores:
    """Score a model on the images of shards.

    Args:
        model: The model.
        pattern: Pattern of the shards.
        clicks: Numbers of clicks after which to score.
        corrected: Whether the clicks are those of `click_iterative_K`, not of `click_random_K`.
        smallest: Minimum area of scored masks, as a share of their image.
        grid_values: Scores masks after the model's mask grid; a cache, for several models.
    """
    later: Literal["random", "corrections"] = "corrections" if corrected else "random"
    config = ValidationConfig(clicks=clicks, later_clicks=later)
    adapted = EvaluatorModel(model, grid_values=grid_values)
    evaluator = validation_evaluator(adapted, config, seed=0)
    images, scores = image_sources.PackedImages(open_shards(pattern)), ImageScores(config)
    for place in images.numbers:
        read = images.read(place)
        assert not isinstance(read, CorruptSample), read
        least = smallest * read.image.shape[0] * read.image.shape[1]
        kept = tuple(instance for instance in read.about.instances if instance.area >= least)
        annotations = replace(read.about, instances=kept)
        scores.add(evaluator.evaluate(place, read.image, annotations), annotations)
    return scores.compute()


def images_of(pattern: str) -> Iterator[AnnotatedImage]:
    """Yield the images of shards, which must all be readable."""
    for annotated in annotated_images(open_shards(pattern)):
        assert isinstance(annotated, AnnotatedImage), annotated
        yield annotated


def grid_ceiling(pattern: str, side: int) -> float:
    """Compute the mIoU of the true masks after resizing to a model's mask grid and back."""
    values: list[Tensor] = []
    cells = side // 4
    for annotated in images_of(pattern):
        resize = Resize.fit(annotated.image.shape[:2], side, "squash")
        coarse = torch.from_numpy(
            half_covered(run_lengths(annotated.truth), resize.mask_grid(cells))
        )
        logits = torch.where(coarse, 1.0, -1.0)[:, None]
        back = torch.cat([resize.masks_back(logit[None])[0] > 0 for logit in logits])
        truth = torch.from_numpy(np.stack([decode(rle) for rle in annotated.truth]))
        values.append(mask_iou(back, truth))
    return float(torch.cat(values).mean())
