"""Score frozen encoders by a linear probe: which frequent object a crop of an image shows.

A crop is the square around an annotated box, a little larger than it. Photos are dealt into
folds, so that no photo is on both sides of a split; each crop is judged once, by a classifier
that has not seen its photo. What an encoder makes of a crop is the mean of its last block's
tokens (there is no class token), standardised; on it works a logistic regression whose
regularisation is chosen within the training folds.

Encoders may have been pretrained on these photos, as all of a study have alike, but never on their
labels.
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
from efficientsam_pl.data.decode import decode_smaller
from efficientsam_pl.data.schema import CorruptSampleError
from efficientsam_pl.data.transforms import Crop, resized_crop
from efficientsam_pl.models.config import NAMED, EncoderConfig
from efficientsam_pl.models.segmenter import PixelNorm
from efficientsam_pl.models.vit import PlainViT
from efficientsam_pl.models.weights import load_strictly, read_weights, strip_prefix
from efficientsam_pl.recipes.root_configs import from_dict

NAME = "probe"
PROGRAM = "studies.linear_probe"
_ENLARGED = 1.2  # side of the crop over the longer side of its box
_SMALLEST_PX = 32  # shorter side of a box; what is smaller shows nothing
_CATEGORIES = 8
_FEWEST_IMAGES = 6  # that show a category
_MOST_A_IMAGE = 3  # crops of one category: a bowl of oranges is no thirty photos
_RAW_SIDE = 16  # pixels a side of the raw-pixel baseline
_FOLDS, _INNER_FOLDS = 5, 3
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # inverse regularisation
_BATCH = 64


@dataclass(frozen=True)
class Crops:
    """Labelled object crops: k of them, s pixels a side."""

    images: UInt8[Tensor, "k 3 s s"]
    labels: Int64[np.ndarray, "k"]
    photos: Int64[np.ndarray, "k"]  # which photo each is cut from
    names: tuple[str, ...]  # of the labels


@dataclass(frozen=True)
class Score:
    """Over all crops, each judged by a classifier that has not seen its photo; shares of 1."""

    balanced: float  # mean over the categories
    top1: float


def main(argv: Sequence[str] | None = None) -> int:
    """Probes the encoders named on the command line, an untrained one and raw pixels."""
    parser = common_parser(PROGRAM, (__doc__ or "").splitlines()[0])
    parser.add_argument("encoders", nargs="*", type=Path, help="RUN/encoder.safetensors")
    parser.add_argument("--seeds", type=int, default=3, help="ways to deal photos into folds")
    given = parser.parse_args(argv)
    report(NAME, measure(given), Options(json=given.json, quick=given.quick))
    return 0


def measure(given: argparse.Namespace) -> list[Row]:
    """Rows of every encoder; `--quick` deals the photos once."""
    shapes = [encoder_shape(path) for path in given.encoders]
    shape = shapes[0] if shapes else EncoderConfig(image_size=96, depth=4)
    crops = object_crops(coco_images_at_hand(), shape.image_size)
    seeds = range(1 if given.quick else given.seeds)
    found = {"raw pixels": raw_pixels(crops.images)}
    found["untrained"] = encoder_features(untrained(shape, seed=0), crops.images)
    for path in given.encoders:
        found[str(path)] = encoder_features(load_encoder(path), crops.images)
    rows = []
    for name, features in found.items():
        scores = [probe(features, crops, seed) for seed in seeds]
        rows += probe_rows(NAME, name, crops, scores)
    return rows


def probe_rows(benchmark: str, name: str, crops: Crops, scores: Sequence[Score]) -> list[Row]:
    """The means over some scores of one encoder, beside chance."""
    slug = name.replace(" ", "_")
    counts = np.bincount(crops.labels)
    what = (
        f"{name}: {len(crops.labels)} crops of {len(crops.names)} categories from "
        f"{len(set(crops.photos.tolist()))} photos, mean of {len(scores)}"
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


def object_crops(photos: Sequence[tuple[Path, tuple[LabelledBox, ...]]], side: int) -> Crops:
    """The crops of the most frequent categories, `side` pixels each.

    Args:
        photos: File and boxes of each photo.
        side: What an encoder takes.
    """
    kept = [_spread(boxes) for _, boxes in photos]
    names = _frequent(kept)
    images, labels, numbers = [], [], []
    for number, ((path, _), boxes) in enumerate(zip(photos, kept, strict=True)):
        of_interest = [box for box in boxes if box.category in names]
        if not of_interest:
            continue
        try:
            photo = decode_smaller(path.read_bytes(), 1.0)
        except CorruptSampleError:  # one of them is: training leaves it out too
            continue
        for box in of_interest:
            images.append(resized_crop(photo, square_around(box.xywh, photo.image_hw), side))
            labels.append(names.index(box.category))
            numbers.append(number)
    return Crops(torch.stack(images), np.array(labels), np.array(numbers), names)


def square_around(xywh: tuple[float, float, float, float], image_hw: tuple[int, int]) -> Crop:
    """A square a fifth larger than a box, moved into the photo; no larger than the photo."""
    x, y, w, h = xywh
    side = min(round(_ENLARGED * max(w, h)), *image_hw)
    left = min(max(0, round(x + w / 2 - side / 2)), image_hw[1] - side)
    top = min(max(0, round(y + h / 2 - side / 2)), image_hw[0] - side)
    return Crop(top, left, side, side, flip=False)


def encoder_shape(path: Path) -> EncoderConfig:
    """The shape that an encoder's file tells.

    Raises:
        SystemExit: The file tells none.
    """
    told = read_weights(str(path)).config
    if told is None:
        raise SystemExit(f"{path} was not written by a pretraining run")
    return from_dict(EncoderConfig, told)


def load_encoder(path: Path) -> PlainViT:
    """The encoder of a pretraining run."""
    trunk = PlainViT(encoder_shape(path))
    state = strip_prefix(read_weights(str(path)).state, "image_encoder.trunk.")
    load_strictly(trunk, state, str(path))
    return trunk.eval()


def untrained(shape: EncoderConfig, seed: int) -> PlainViT:
    """Fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PlainViT(shape).eval()


@torch.inference_mode()
def encoder_features(trunk: PlainViT, images: UInt8[Tensor, "k 3 s s"]) -> Float[np.ndarray, "k c"]:
    """The mean over the tokens of the last block."""
    norm = PixelNorm(NAMED["sam_vit_h"].pixel_mean, NAMED["sam_vit_h"].pixel_std)
    means = [trunk(norm(batch)).mean(1) for batch in images.split(_BATCH)]
    features: Float[np.ndarray, "k c"] = torch.cat(means).double().numpy()
    return features


def raw_pixels(images: UInt8[Tensor, "k 3 s s"]) -> Float[np.ndarray, "k c"]:
    """The crops themselves, 16 x 16 pixels of three colours."""
    small = F.interpolate(images.double(), (_RAW_SIDE, _RAW_SIDE), mode="area")
    pixels: Float[np.ndarray, "k c"] = small.flatten(1).numpy()
    return pixels


def probe(features: Float[np.ndarray, "k c"], crops: Crops, seed: int) -> Score:
    """Logistic regression on standardised features; scikit-learn comes with the extra "bench".

    Args:
        features: Of each crop.
        crops: Whose labels are learned.
        seed: Decides the folds.
    """
    from sklearn.metrics import accuracy_score, balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold

    outer = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    judged = np.full_like(crops.labels, -1)
    for learned, unseen in outer.split(features, crops.labels, crops.photos):
        search = _classifier(seed)
        search.fit(features[learned], crops.labels[learned], groups=crops.photos[learned])
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
    """The largest few boxes of each category in a photo, those too small left out."""
    of_category = defaultdict(list)
    for box in boxes:
        if min(box.xywh[2:]) >= _SMALLEST_PX:
            of_category[box.category].append(box)
    return [
        box
        for own in of_category.values()
        for box in sorted(own, key=lambda one: -one.xywh[2] * one.xywh[3])[:_MOST_A_IMAGE]
    ]


def _frequent(kept: Sequence[Sequence[LabelledBox]]) -> tuple[str, ...]:
    """The categories of most crops among those that enough photos show, most frequent first."""
    crops: dict[str, int] = defaultdict(int)
    photos: dict[str, int] = defaultdict(int)
    for boxes in kept:
        for box in boxes:
            crops[box.category] += 1
        for category in {box.category for box in boxes}:
            photos[category] += 1
    enough = [name for name in crops if photos[name] >= _FEWEST_IMAGES]
    return tuple(sorted(enough, key=lambda name: (-crops[name], name))[:_CATEGORIES])


if __name__ == "__main__":
    sys.exit(main())
