"""A linear probe of frozen encoders on imagenette: logistic regression on mean tokens."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from benchmarks.studies.coco_folders import data_folder
from benchmarks.studies.linear_probe import encoder_features
from efficientsam_pl.data.images.decode import decode_smaller
from efficientsam_pl.data.transforms import centre_crop, resized_crop
from efficientsam_pl.models.vit import PlainViT

_DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the weights; chosen on a fifth of the training images
_CHOOSING_EVERY = 5
_ITERATIONS = 100


@dataclass(frozen=True)
class LabelledImages:
    """Images of s pixels a side with the numbers of their classes."""

    images: UInt8[Tensor, "k 3 s s"]
    labels: Int64[Tensor, "k"]


def probe_accuracy(encoder: PlainViT, side: int, most: int | None) -> float:
    """Train a linear classifier on imagenette's training part, and score it on the other.

    Args:
        encoder: Frozen, on its device.
        side: Pixels a side.
        most: Number of images of each part; None: all.
    """
    train, heldout = (imagenette(part, side, most) for part in ("train", "val"))
    features = [
        torch.from_numpy(encoder_features(encoder, part.images)) for part in (train, heldout)
    ]
    learned, unseen = standardised(*features)
    return linear_accuracy((learned, train.labels), (unseen, heldout.labels))


def linear_accuracy(
    train: tuple[Float[Tensor, "k c"], Int64[Tensor, "k"]],
    heldout: tuple[Float[Tensor, "j c"], Int64[Tensor, "j"]],
) -> float:
    """Accuracy on held-out features of the classifier with the best weight decay.

    The decay is the one that serves best on a fifth of the training features, held back.
    """
    features, labels = train
    chooses = torch.arange(len(labels)) % _CHOOSING_EVERY == 0
    accuracies = [
        _accuracy(
            fitted(features[~chooses], labels[~chooses], decay), features[chooses], labels[chooses]
        )
        for decay in _DECAYS
    ]
    best = _DECAYS[int(np.argmax(accuracies))]
    return _accuracy(fitted(features, labels, best), *heldout)


def fitted(
    features: Float[Tensor, "k c"], labels: Int64[Tensor, "k"], decay: float
) -> Float[Tensor, "n c1"]:
    """Minimise cross entropy plus the squared weights times `decay`; the bias is the last column.

    The minimum is unique, so that no seed is needed.
    """
    weights = torch.zeros(int(labels.max()) + 1, features.shape[1] + 1, dtype=features.dtype)
    weights.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=_ITERATIONS, line_search_fn="strong_wolfe", tolerance_grad=1e-6
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(_logits(weights, features), labels)
        value = value + decay * weights[:, :-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def standardised(
    train: Float[Tensor, "k c"], heldout: Float[Tensor, "j c"]
) -> tuple[Float[Tensor, "k c"], Float[Tensor, "j c"]]:
    """Shift and scale both by the mean and the deviation of the training features."""
    mean, std = train.mean(0), train.std(0).clamp(min=1e-6)
    return (train - mean) / std, (heldout - mean) / std


@lru_cache(maxsize=2)
def imagenette(part: str, side: int, most: int | None) -> LabelledImages:
    """Decode the centre squares of the images of a part; classes in the order of their folders."""
    folders = sorted((data_folder() / "imagenette" / part).iterdir())
    share = None if most is None else -(-most // len(folders))
    images, labels = [], []
    for label, folder in enumerate(folders):
        for path in sorted(folder.glob("*.JPEG"))[:share]:
            images.append(_square(path, side))
            labels.append(label)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    return LabelledImages(torch.stack(images)[order], torch.tensor(labels)[order])


def _square(path: Path, side: int) -> UInt8[Tensor, "3 s s"]:
    image = decode_smaller(path.read_bytes(), 1.0)
    return resized_crop(image, centre_crop(image.image_hw), side)


def _logits(weights: Float[Tensor, "n c1"], features: Float[Tensor, "k c"]) -> Float[Tensor, "k n"]:
    return features @ weights[:, :-1].T + weights[:, -1]


def _accuracy(
    weights: Float[Tensor, "n c1"], features: Float[Tensor, "k c"], labels: Int64[Tensor, "k"]
) -> float:
    return float((_logits(weights, features).argmax(1) == labels).double().mean())
