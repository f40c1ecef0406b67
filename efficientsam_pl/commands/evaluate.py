"""`efficientsam evaluate`: box and 1-click mIoU and mask AP on shards."""

import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from rich.progress import track

from efficientsam_pl.commands.models import load_model
from efficientsam_pl.config import EvaluateConfig
from efficientsam_pl.data.loaders import AnnotatedPhoto, annotated_photos
from efficientsam_pl.data.shards import ShardSet, open_shards
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.protocols import Scores, score_photos
from efficientsam_pl.inference.predictor import Predictor
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.structures import Damage


def run(config: EvaluateConfig) -> Path:
    """Scores a model and writes the numbers, with what made them, to `out`."""
    shards = open_shards(config.shards)
    device = _device(config.accelerator)
    model = load_model(config.model.name, config.model.weights)
    scores, damage = score(model.to(device), shards, config.seed)
    result = {
        "box_miou": scores.box,
        "click1_miou": scores.click1,
        "filled_box_miou": scores.filled_box,
        "ap": scores.ap._asdict(),
        "photos": scores.photos,
        "masks": scores.masks,
        "damaged": [vars(d) for d in damage],
        "model": config.model.name,
        "weights": config.model.weights,
        "shards": config.shards,
        "seed": config.seed,
        "protocol": "box: tight box; click1: uniform random foreground pixel; the candidate with "
        "the highest predicted IoU is scored at the photo's size; AP is class-agnostic",
        "versions": {name: version(name) for name in ("torch", "efficientsam_pl")},
    }
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{scores.photos} photos, {scores.masks} masks, {len(damage)} damaged: "
        f"box mIoU {scores.box:.4f} (filling the box {scores.filled_box:.4f}), "
        f"1-click mIoU {scores.click1:.4f}, AP {scores.ap.ap:.4f} -> {out}"
    )
    return out


def score(model: Segmenter, shards: ShardSet, seed: int) -> tuple[Scores, list[Damage]]:
    """Scores every photo of a set; those that cannot be read are returned, not scored."""
    damage: list[Damage] = list(shards.damage)

    def readable() -> Iterator[AnnotatedPhoto]:
        photos = annotated_photos(shards)
        for item in track(
            photos, "Scoring", len(shards), transient=True, disable=not sys.stdout.isatty()
        ):
            if isinstance(item, Damage):
                damage.append(item)
            else:
                yield item

    return score_photos(Predictor(model), readable(), seed), damage


def _device(accelerator: str) -> torch.device:
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator=gpu, but no GPU can be seen from here")
    gpu = torch.cuda.is_available() if accelerator == "auto" else accelerator == "gpu"
    return torch.device("cuda" if gpu else "cpu")
