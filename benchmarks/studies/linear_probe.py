"""Score frozen encoders by a linear probe that classifies crops of frequent objects.

A crop is a square slightly larger than an annotated box. Images are split into folds, so that no
image is on both sides of a split; each crop is classified once, by a classifier that was not
trained on its image. The features of a crop are the standardised mean of the last block's tokens
(there is no class token); the classifier is a logistic regression whose regularisation is chosen
within the training folds.

Encoders may have been pretrained on these images, as all encoders of a study are, but never on
their labels.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from benchmarks.harness import Options, Row, common_parser, report
from benchmarks.studies.coco_folders import LabelledBox, coco_images_at_hand
from efficientsam_pl.config.load import from_dict
from efficientsam_pl.data.images.decode import decode_smaller
from efficientsam_pl.data.schema import CorruptSampleError
from efficientsam_pl.data.transforms import Crop, resized_crop
from efficientsam_pl.models.config import NAMED, EncoderConfig
from efficientsam_pl.models.segmenter import PixelNorm
from efficientsam_pl.models.vit import PlainViT
from efficientsam_pl.models.weights import load_strictly, read_weights, strip_prefix

NAME = "probe"
PROGRAM = "studies.linear_probe"
_ENLARGED = 1.2  # side of the crop over the longer side of its box
_MIN_PX = 32  # shorter side of a box
_CATEGORIES = 8
_MIN_IMAGES = 6  # per category
_MAX_PER_IMAGE = 3  # crops per category: thirty oranges in a bowl are not thirty samples
_RAW_SIDE = 16  # pixels per side of the raw-pixel baseline
_FOLDS, _INNER_FOLDS = 5, 3
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # inverse regularisation
_BATCH = 64


@dataclass(frozen=True)
class Crops:
    """Labelled object crops: k of them, s pixels per side."""

    images: UInt8[Tensor, "k 3 s s"]
    labels: Int64[np.ndarray, "k"]
    files: Int64[np.ndarray, "k"]  # index of each crop's image
    names: tuple[str, ...]  # of the labels


@dataclass(frozen=True)
class Score:
    """Accuracies over all crops, each classified without training on its image."""

    balanced: float  # mean over the categories
    top1: float


def main(argv: Sequence[str] | None = None) -> int:
    """Probe the given encoders, an untrained one and raw pixels."""
    parser = common_parser(PROGRAM, (__doc__ or "").splitlines()[0])
    parser.add_argument("encoders", nargs="*", type=Path, help="RUN/encoder.safetensors")
    parser.add_argument("--seeds", type=int, default=3, help="number of splits into folds")
    given = parser.parse_args(argv)
    report(NAME, measure(given), Options(json=given.json, quick=given.quick))
    return 0


def measure(given: argparse.Namespace) -> list[Row]:
    """Measure the rows of every encoder; `--quick` splits the images once."""
    shapes = [encoder_shape(path) for path in given.encoders]
    shape = shapes[0] if shapes else EncoderConfig(image_size=96, depth=4)
    crops = object_crops(coco_images_at_hand(), shape.image_size)
    seeds = range(1 if given.quick else given.seeds)
    feature_sets = {"raw pixels": raw_pixels(crops.images)}
    feature_sets["untrained"] = encoder_features(untrained(shape, seed=0), crops.images)
    for path in given.encoders:
        feature_sets[str(path)] = encoder_features(load_encoder(path), crops.images)
    rows = []
    for name, features in feature_sets.items():
        scores = [probe(features, crops, seed) for seed in seeds]
        rows += probe_rows(NAME, name, crops, scores)
    return rows


def probe_rows(benchmark: str, name: str, crops: Crops, scores: Sequence[Score]) -> list[Row]:
    """Rows of an encoder's mean scores, compared with chance."""
    slug = name.replace(" ", "_")
    counts = np.bincount(crops.labels)
    what = (
        f"{name}: {len(crops.labels)} crops of {len(crops.names)} categories from "
        f"{len(set(crops.images.tolist()))} images, mean of {len(scores)}"
    )
    return [
        Row(
            id=f"{benchmark}.{slug}.balanced_accuracy",
            work=f"linear probe of {what}; reference: chance",
            value=float(np.mean([score.balanced for score in scores])),
            unit="",
            reference=1 / len(crops.names),
            better="higher",
        ),
        Row(
            id=f"{benchmark}.{slug}.top1",
            work=f"the same, share of all crops; reference: the most frequent category's "
            f"({crops.names[counts.argmax()]})",
            value=float(np.mean([score.top1 for score in scores])),
            unit="",
            reference=float(counts.max() / counts.sum()),
            better="higher",
        ),
    ]


def object_crops(files: Sequence[tuple[Path, tuple[LabelledBox, ...]]], side: int) -> Crops:
    """Crop the objects of the most frequent categories.

    Args:
        images: File and boxes of each image.
        side: Input size of the encoder in pixels.
    """
    kept = [_spread(boxes) for _, boxes in files]
    names = _frequent(kept)
    images, labels, numbers = [], [], []
    for number, ((path, _), boxes) in enumerate(zip(files, kept, strict=True)):
        of_interest = [box for box in boxes if box.category in names]
        if not of_interest:
            continue
        try:
            image = decode_smaller(path.read_bytes(), 1.0)
        except CorruptSampleError:  # one image is corrupt, and is skipped in training too
            continue
        for box in of_interest:
            images.append(resized_crop(image, square_around(box.xywh, image.image_hw), side))
            labels.append(names.index(box.category))
            numbers.append(number)
    return Crops(torch.stack(images), np.array(labels), np.array(numbers), names)


def square_around(xywh: tuple[float, float, float, float], image_hw: tuple[int, int]) -> Crop:
    """Enlarge a box by a fifth to a square, shifted into the image and limited to its size."""
    x, y, w, h = xywh
    side = min(round(_ENLARGED * max(w, h)), *image_hw)
    left = min(max(0, round(x + w / 2 - side / 2)), image_hw[1] - side)
    top = min(max(0, round(y + h / 2 - side / 2)), image_hw[0] - side)
    return Crop(top, left, side, side, flip=False)


def encoder_shape(path: Path) -> EncoderConfig:
    """Read the shape from an encoder's file.

    Raises:
        SystemExit: The file has none.
    """
    stored_config = read_weights(str(path)).config
    if stored_config is None:
        raise SystemExit(f"{path} was not written by a pretraining run")
    return from_dict(EncoderConfig, stored_config)


def load_encoder(path: Path) -> PlainViT:
    """Load the encoder of a pretraining run."""
    trunk = PlainViT(encoder_shape(path))
    state = strip_prefix(read_weights(str(path)).state, "image_encoder.trunk.")
    load_strictly(trunk, state, str(path))
    return trunk.eval()


def untrained(shape: EncoderConfig, seed: int) -> PlainViT:
    """Build an encoder with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PlainViT(shape).eval()


@torch.inference_mode()
def encoder_features(trunk: PlainViT, images: UInt8[Tensor, "k 3 s s"]) -> Float[np.ndarray, "k c"]:
    """Compute the mean over the tokens of the last block, on the encoder's device."""
    device = trunk.pos_embed.device
    norm = PixelNorm(NAMED["sam_vit_h"].pixel_mean, NAMED["sam_vit_h"].pixel_std).to(device)
    means = [trunk(norm(batch.to(device))).mean(1).cpu() for batch in images.split(_BATCH)]
    features: Float[np.ndarray, "k c"] = torch.cat(means).double().numpy()
    return features


def raw_pixels(images: UInt8[Tensor, "k 3 s s"]) -> Float[np.ndarray, "k c"]:
    """Downsample the crops to 16 x 16 pixels of three colours."""
    small = F.interpolate(images.double(), (_RAW_SIDE, _RAW_SIDE), mode="area")
    pixels: Float[np.ndarray, "k c"] = small.flatten(1).numpy()
    return pixels


def probe(features: Float[np.ndarray, "k c"], crops: Crops, seed: int) -> Score:
    """Fit a logistic regression on standardised features; needs the extra "bench".

    Args:
        features: Features of each crop.
        crops: Labelled crops.
        seed: Seed of the folds.
    """
    from sklearn.metrics import accuracy_score, balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold

    outer = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    judged = np.full_like(crops.labels, -1)
    for learned, unseen in outer.split(features, crops.labels, crops.files):
        search = _classifier(seed)
        search.fit(features[learned], crops.labels[learned], groups=crops.files[learned])
        judged[unseen] = search.predict(features[unseen])
    return Score(
        balanced=float(balanced_accuracy_score(crops.labels, judged)),
        top1=float(accuracy_score(crops.labels, judged)),
    )


def _classifier(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(class_weight="balanced", max_iter=2000)
    return GridSearchCV(
        make_pipeline(StandardScaler(), regression),
        {"logisticregression__C": _STRENGTHS},
        scoring="balanced_accuracy",
        cv=StratifiedGroupKFold(_INNER_FOLDS, shuffle=True, random_state=seed),
    )


def _spread(boxes: Sequence[LabelledBox]) -> list[LabelledBox]:
    """Select the largest few boxes of each category in an image, without small ones."""
    of_category = defaultdict(list)
    for box in boxes:
        if min(box.xywh[2:]) >= _MIN_PX:
            of_category[box.category].append(box)
    return [
        box
        for members in of_category.values()
        for box in sorted(members, key=lambda labelled: -labelled.xywh[2] * labelled.xywh[3])[
            :_MAX_PER_IMAGE
        ]
    ]


def _frequent(kept: Sequence[Sequence[LabelledBox]]) -> tuple[str, ...]:
    """List the categories with most crops among those in enough images, most frequent first."""
    crops: dict[str, int] = defaultdict(int)
    files: dict[str, int] = defaultdict(int)
    for boxes in kept:
        for box in boxes:
            crops[box.category] += 1
        for category in {box.category for box in boxes}:
            files[category] += 1
    enough = [name for name in crops if files[name] >= _MIN_IMAGES]
    return tuple(sorted(enough, key=lambda name: (-crops[name], name))[:_CATEGORIES])


if __name__ == "__main__":
    sys.exit(main())
