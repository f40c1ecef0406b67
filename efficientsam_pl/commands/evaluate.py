"""`efficientsam evaluate`: box and click mIoU and mask AP on shards."""

import json
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from rich.progress import track

from efficientsam_pl.commands.models import load_model
from efficientsam_pl.config import EvaluateConfig
from efficientsam_pl.data.loaders import annotated_photos
from efficientsam_pl.data.shards import ShardSet, open_shards
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.protocols import AskedPhoto, Questions
from efficientsam_pl.evaluation.scores import PhotoScores, Scores
from efficientsam_pl.inference.predictor import Predictor
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.structures import Damage

_CLICKS = (1, 3)  # paper, table 3


def run(config: EvaluateConfig) -> Path:
    """Scores a model and writes the numbers, with what made them, to `out`."""
    shards = open_shards(config.shards)
    device = _device(config.accelerator)
    model = load_model(config.model.name, config.model.weights)
    scores, damage = score(model.to(device), shards, config.seed, _CLICKS)
    result = {
        "box_miou": scores.box,
        **{f"click{count}_miou": iou for count, iou in scores.clicks.items()},
        "filled_box_miou": scores.filled_box,
        "ap": scores.ap._asdict(),
        "photos": scores.photos,
        "masks": scores.masks,
        "damaged": [vars(d) for d in damage],
        "model": config.model.name,
        "weights": config.model.weights,
        "shards": config.shards,
        "seed": config.seed,
        "protocol": "box: tight box; clicks: uniform random foreground pixels; the candidate with "
        "the highest predicted IoU is scored at the photo's size; AP is class-agnostic",
        "versions": {name: version(name) for name in ("torch", "efficientsam_pl")},
    }
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{scores.photos} photos, {scores.masks} masks, {len(damage)} damaged: "
        f"box mIoU {scores.box:.4f} (filling the box {scores.filled_box:.4f}), "
        f"1-click mIoU {scores.click1:.4f}, 3-click mIoU {scores.clicks[3]:.4f}, "
        f"AP {scores.ap.ap:.4f} -> {out}"
    )
    return out


@torch.inference_mode()
def score(
    model: Segmenter, shards: ShardSet, seed: int, clicks: tuple[int, ...] = (1,)
) -> tuple[Scores, list[Damage]]:
    """Scores every photo of a set; those that cannot be read are returned, not scored.

    Args:
        model: What is scored.
        shards: Of masked photos.
        seed: Of the clicks.
        clicks: After how many there is a score.
    """
    damage: list[Damage] = list(shards.damage)
    predictor = Predictor(model)
    scores = PhotoScores(Questions(clicks, seed=seed))
    for photo in track(
        annotated_photos(shards),
        "Scoring",
        len(shards),
        transient=True,
        disable=not sys.stdout.isatty(),
    ):
        if isinstance(photo, Damage):
            damage.append(photo)
            scores.add_damaged(1)
            continue
        embedded = predictor.embed(photo.image)
        features = embedded.features
        decode = partial(model.decode, features)
        scores.add(AskedPhoto(photo.key, photo.truth, embedded.resize, decode, features.device))
    return scores.compute(), damage


def _device(accelerator: str) -> torch.device:
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator=gpu, but no GPU can be seen from here")
    gpu = torch.cuda.is_available() if accelerator == "auto" else accelerator == "gpu"
    return torch.device("cuda" if gpu else "cpu")
