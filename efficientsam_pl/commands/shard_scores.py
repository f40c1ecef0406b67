"""Scores of a segmenter on shards in one process, as training logs them of held-out photos."""

import sys
from functools import partial
from itertools import islice

import torch
from rich.progress import track

from efficientsam_pl.data.dataloaders import annotated_images
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.evaluation.prompt_metrics import ImageScores, Scores
from efficientsam_pl.evaluation.training_protocols import PromptedImage, Questions
from efficientsam_pl.inference.predictor import Predictor
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.structures import CorruptSample


@torch.inference_mode()
def score(
    model: Segmenter,
    shards: ShardSet,
    seed: int,
    clicks: tuple[int, ...] = (1,),
    images: int | None = None,
) -> tuple[Scores, list[CorruptSample]]:
    """Scores every photo of a set; those that cannot be read are returned, not scored.

    Args:
        model: What is scored.
        shards: Of masked photos.
        seed: Of the clicks.
        clicks: After how many there is a score.
        images: The first so many are scored; None: all.
    """
    damage: list[CorruptSample] = list(shards.corrupt)
    predictor = Predictor(model)
    scores = ImageScores(Questions(clicks, seed=seed))
    for photo in track(
        islice(annotated_images(shards), images),
        "Scoring",
        len(shards) if images is None else min(images, len(shards)),
        transient=True,
        disable=not sys.stdout.isatty(),
    ):
        if isinstance(photo, CorruptSample):
            damage.append(photo)
            scores.add_damaged(1)
            continue
        embedded = predictor.embed(photo.image)
        features = embedded.features
        decode = partial(model.decode, features)
        scores.add(PromptedImage(photo.key, photo.truth, embedded.resize, decode, features.device))
    return scores.compute(), damage
