"""Measure what stored teacher features cost: held-out loss, bytes and rounding error.

A small student is trained with the online teacher, with four stored views per image in float16 and
in int8, and with crops of whole-image features in float16. All use the same seeds, so the same
initial weights, images and order.

The held-out loss of all students is measured in the same way: on the centre crops of the held-out
images, with the same masks, and with the online teacher's features of the crop as target. The
whole-image teacher sees 1024 pixels of the image instead of the crop, so its student learns another
function; its loss against its training features is also reported. The teacher is SAM's architecture
with seeded random weights.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, Row, common_parser, report
from benchmarks.studies.coco_folders import PackedImages, images_at_hand, pack
from benchmarks.studies.sami_runs import Setting, Spread, online_loss, study_config, write_markdown
from efficientsam_pl.commands import embed_teacher
from efficientsam_pl.data.packing.runner import ArrayShare
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.recipes.sami.recipe import SamiRecipe
from efficientsam_pl.training.train import train

NAME = "sami_store"
PROGRAM = "studies.feature_store"
_HELDOUT_EVERY = 5  # images
_VIEWS = 4
# The whole-image teacher's input and stored tokens per side, as in SAM
_IMAGE_SIDE, _IMAGE_GRID = 1024, 64
_EMBED_BATCH_SIZE = 2  # images: a global block's attention over 4096 tokens is large


@dataclass(frozen=True)
class Store:
    """Kind of stored data per image: nothing, views, or features of the whole image."""

    name: str
    features: Mapping[str, Any]
    teacher: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """Results of a kind of store, over the seeds."""

    online: Spread  # held-out loss against the online teacher's features
    own_loss: Spread  # against the features used for training
    mean_feature: Spread  # held-out loss of the mean feature at each position
    bytes_a_image: float  # of its training shards, all views; 0 if nothing is stored
    relative_error: float  # of the stored values: RMS error over RMS of the features


def kinds(photo_side: int, photo_grid: int) -> list[Store]:
    """List online first, then each kind of store."""
    views = {"kind": "views", "views": _VIEWS}
    whole = {"kind": "photos", "grid": photo_grid, "numbers": "float16"}
    return [
        Store("online", {}, {}),
        Store("views_float16", views | {"numbers": "float16"}, {}),
        Store("views_int8", views | {"numbers": "int8"}, {}),
        Store("photos_float16", whole, {"image_size": photo_side}),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Embed, train, measure and print; `--out` also writes a Markdown file."""
    parser = common_parser(PROGRAM, (__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="a Markdown file")
    parser.add_argument("--steps", type=int, default=400, help="of each run")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(argv)
    setting = Setting(steps=given.steps, measured=1)
    stores, seeds, images = kinds(_IMAGE_SIDE, _IMAGE_GRID), given.seeds, images_at_hand()
    if given.quick:
        setting = replace(setting, steps=min(given.steps, 20), side=64, width=64, depth=2)
        stores, seeds, images = kinds(256, 16), 1, images[:40]
    with tempfile.TemporaryDirectory() as name:
        packed = pack(images, Path(name) / "photos", _HELDOUT_EVERY, setting.long_side)
        outcomes = {
            store.name: outcome(store, setting, packed, Path(name), range(seeds))
            for store in stores
        }
    rows = store_rows(outcomes)
    if given.out is not None:
        command = f"python -m benchmarks.{PROGRAM} --steps {setting.steps} --seeds {seeds}"
        words = [_description(setting, packed, stores[-1]), _table(outcomes)]
        write_markdown(given.out, "What stored teacher features cost", command, words, rows)
    report(NAME, rows, Options(json=given.json, quick=given.quick))
    return 0


def outcome(
    store: Store, setting: Setting, packed: PackedImages, folder: Path, seeds: Sequence[int]
) -> Outcome:
    """Embed if features are stored, then train and measure once per seed."""
    online, own_loss, mean_feature, stored = [], [], [], []
    for seed in seeds:
        run = folder / f"{store.name}-{seed}"
        config = trained = study_config(setting, packed, run, seed)
        if store.features:
            # views are sampled for each seed; whole images are the same for all
            drawn = seed if store.features["kind"] == "views" else 0
            place = folder / f"{store.name}-features-{drawn}"
            features = {**store.features, "dir": str(place), "seed": drawn}
            changes = {"features": features, "teacher": store.teacher}
            trained = study_config(setting, packed, run, seed, changes)
            stored.append(embedded(trained, place / "train" / "pack-summary.json"))
        left = train(SamiRecipe(trained))
        assert left.heldout_loss is not None, "a study holds photos out"
        assert left.mean_feature_loss is not None, "and knows their baseline"
        own_loss.append(left.heldout_loss)
        mean_feature.append(left.mean_feature_loss)
        online.append(online_loss(config, run))
    return Outcome(
        online=Spread(tuple(online)),
        own_loss=Spread(tuple(own_loss)),
        mean_feature=Spread(tuple(mean_feature)),
        bytes_a_image=_mean([statistics["bytes"] / statistics["samples"] for statistics in stored]),
        relative_error=_mean([statistics["relative_error"] for statistics in stored]),
    )


def embedded(config: PretrainConfig, summary: Path) -> dict[str, Any]:
    """Read the summary of embedding the training images, which are embedded if necessary."""
    if not summary.exists():
        few = replace(config.trainer, micro_batch=_EMBED_BATCH_SIZE)
        embed_teacher.run(replace(config, trainer=few), ArrayShare())
    statistics: dict[str, Any] = json.loads(summary.read_text())
    return statistics


def store_rows(outcomes: Mapping[str, Outcome]) -> list[Row]:
    """Rows of losses compared with the online teacher, of bytes, and of rounding errors."""
    online, *others = outcomes
    noise = outcomes[online].online
    rows = [
        _row(online, "heldout_loss", f"mean of {len(noise.values)} seeds", noise.mean()),
        _row(online, "heldout_loss_std", "standard deviation over the seeds", noise.std()),
    ]
    for name in others:
        rows += _rows_of(name, outcomes[name], noise)
    rounded, kept = outcomes["views_int8"], outcomes["views_float16"]
    apart = rounded.online.less(kept.online)
    return [
        *rows,
        _row(
            "views_int8",
            "bytes_to_float16",
            "bytes of an image's views with their scales and the tar's headers; reference: float16",
            rounded.bytes_a_image,
            reference=kept.bytes_a_image,
            unit="bytes",
        ),
        _row(
            "views_int8",
            "noise",
            "held-out loss of int8 less that of float16, mean over the seeds, without its sign; "
            "reference: standard deviation of the online loss over the seeds",
            abs(apart.mean()),
            reference=noise.std() or None,
            goal=1.0 if noise.std() else None,
        ),
    ]


def _rows_of(name: str, result: Outcome, noise: Spread) -> list[Row]:
    apart = result.online.less(noise)
    return [
        _row(
            name,
            "heldout_loss",
            "against the online teacher; reference: learned online",
            result.online.mean(),
            reference=noise.mean(),
        ),
        _row(name, "heldout_loss_std", "standard deviation over the seeds", result.online.std()),
        _row(
            name,
            "difference",
            f"to the online run of the same seed, mean (std {apart.std():.5f})",
            apart.mean(),
        ),
        _row(
            name,
            "own_loss",
            "against the features that it stores itself; reference: their mean at each position",
            result.own_loss.mean(),
            reference=result.mean_feature.mean(),
        ),
        _row(
            name,
            "bytes",
            "an image, tar headers included",
            result.bytes_a_image,
            unit="bytes",
        ),
        _row(
            name,
            "relative_error",
            "of the stored numbers: root of the mean squared error over that of the features",
            result.relative_error,
        ),
    ]


def _row(
    store: str,
    figure: str,
    work: str,
    value: float,
    reference: float | None = None,
    goal: float | None = None,
    unit: str = "",
) -> Row:
    return Row(
        id=f"{NAME}.{store}.{figure}",
        work=f"{store}: {work}",
        value=value,
        unit=unit,
        reference=reference,
        goal=goal,
    )


def _description(setting: Setting, packed: PackedImages, whole: Store) -> str:
    return (
        f"{packed.train_images} training and {packed.heldout_photos} held-out images (ImageNet's "
        f"sample and the COCO folders, each image once), crops of {setting.side} pixels, student "
        f"of width {setting.width} and depth {setting.depth}, {setting.steps} steps of "
        f"{setting.batch}; seeded teacher of width {setting.teacher_width}, depth 4; whole images "
        f"at {whole.teacher['image_size']} pixels, {whole.features['grid']} tokens a side. Every "
        "held-out loss in the first column is against the online teacher's features of the centre "
        "crop, with the same masks for all."
    )


def _table(outcomes: Mapping[str, Outcome]) -> str:
    noise = next(iter(outcomes.values())).online
    lines = [
        "| store | held-out loss | to online | against its training features | mean of these | "
        "bytes per image | relative error |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in outcomes.items():
        apart = result.online.less(noise).text(5) if result.bytes_a_image else ""
        size = f"{result.bytes_a_image:.0f}" if result.bytes_a_image else "0"
        error = f"{result.relative_error:.1e}" if result.bytes_a_image else ""
        losses = (result.online.text(), apart, result.own_loss.text(), result.mean_feature.text())
        cells = (name, *losses, size, error)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


if __name__ == "__main__":
    sys.exit(main())
