"""Check that SAMI learns: a small student on the real images at hand, against an MAE control.

Both use the same crops, masks, encoder with equal initial weights, decoder sizes, steps and
learning rate. The control differs in the target, normalised pixels instead of the teacher's
features, in MAE's decoder, and in the loss, over masked tokens only. A linear probe scores both
encoders, untrained ones with the same seeds, and raw pixels. Without `--teacher FILE` the teacher
is SAM's architecture with seeded random weights.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, Row, report
from benchmarks.studies.coco_folders import PackedImages, coco_images_at_hand, images_at_hand, pack
from benchmarks.studies.linear_probe import (
    Crops,
    encoder_features,
    load_encoder,
    object_crops,
    probe,
    raw_pixels,
    untrained,
)
from benchmarks.studies.sami_runs import Setting, Spread, study_config, study_parser, write_markdown
from efficientsam_pl.commands.quickstart.teacher import teacher_encoder
from efficientsam_pl.config.load import as_dict
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.recipes.sami.recipe import PretrainResult, SamiRecipe
from efficientsam_pl.training.train import train
from efficientsam_pl.visualization.curves import loss_curve

NAME = "sami_learns"
PROGRAM = "studies.sami_learning"
_HELDOUT_EVERY = 5  # images
_WAYS = ("sami", "mae")
_CONTROL: dict[str, dict[str, Any]] = {
    "teacher": {"kind": "pixels"},
    "loss": {"tokens": "masked"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train, probe, print, and write runs, images and a Markdown file to a folder."""
    parser = study_parser(NAME, PROGRAM, (__doc__ or "").splitlines()[0], steps=2000)
    parser.add_argument("--side", type=int, default=112, help="pixels of a crop")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--teacher", type=str, help="a released SAM checkpoint")
    given = parser.parse_args(argv)
    setting = Setting(steps=given.steps, side=given.side, accelerator=given.accelerator)
    if given.quick:
        setting = replace(setting, steps=min(given.steps, 60), side=64, width=64, depth=2)
    seeds = 1 if given.quick else given.seeds
    rows = study(setting, seeds, given.out, given.teacher)
    report(NAME, rows, Options(json=given.json, quick=given.quick))
    return 0


def study(setting: Setting, seeds: int, out: Path, teacher: str | None) -> list[Row]:
    """Measure all rows; runs are in `OUT/sami-0` and so on, with their images.

    Args:
        setting: Sizes.
        seeds: Number of seeds.
        out: Folder of all outputs.
        teacher: A released SAM checkpoint; None: the seeded one.
    """
    packed = pack(images_at_hand(), out / "photos", _HELDOUT_EVERY, setting.long_side)
    runs = {
        way: [
            train(SamiRecipe(config_of(way, setting, packed, out / f"{way}-{seed}", seed, teacher)))
            for seed in range(seeds)
        ]
        for way in _WAYS
    }
    crops = object_crops(coco_images_at_hand(), setting.side)
    probed = probed_accuracies(runs, setting, crops, seeds)
    rows = [*loss_rows(runs, setting), *accuracy_rows(probed, crops)]
    for way in _WAYS:
        draw_losses(out / f"{way}.png", way, runs[way])
    words = [_description(setting, packed, teacher), _loss_table(runs), _probe_table(probed)]
    command = f"python -m benchmarks.{PROGRAM} --steps {setting.steps} --seeds {seeds}"
    write_markdown(out / f"{NAME}.md", "Does SAMI learn?", command, words, rows)
    return rows


def config_of(
    way: str, setting: Setting, packed: PackedImages, folder: Path, seed: int, teacher: str | None
) -> PretrainConfig:
    """Build the config of a run."""
    if way == "mae":
        config = study_config(setting, packed, folder, seed, _CONTROL)
        return replace(config, sami=replace(config.sami, decoder="self_attention"))
    config = study_config(setting, packed, folder, seed)
    if teacher is None:
        return config
    shape = as_dict(teacher_encoder(teacher))
    group = {"encoder": shape, "weights": teacher, "image_size": setting.side, "precision": "bf16"}
    return study_config(setting, packed, folder, seed, {"teacher": group})


def probed_accuracies(
    runs: dict[str, list[PretrainResult]], setting: Setting, crops: Crops, seeds: int
) -> dict[str, Spread]:
    """Measure the balanced accuracy of each encoder; folds depend on the seed only."""
    scores: dict[str, list[float]] = {name: [] for name in (*_WAYS, "untrained", "raw_pixels")}
    shape = study_config(setting, PackedImages("-", "-", 0, 0), Path("-"), 0).sami.student
    for seed in range(seeds):
        features = {way: load_encoder(runs[way][seed].encoder) for way in _WAYS}
        features["untrained"] = untrained(shape, seed)
        for name, trunk in features.items():
            scores[name].append(probe(encoder_features(trunk, crops.images), crops, seed).balanced)
        scores["raw_pixels"].append(probe(raw_pixels(crops.images), crops, seed).balanced)
    return {name: Spread(tuple(values)) for name, values in scores.items()}


def loss_rows(runs: dict[str, list[PretrainResult]], setting: Setting) -> list[Row]:
    """Held-out losses beside the mean feature's, and whether they still fell."""
    rows = []
    for way, group in runs.items():
        last, baseline = final_losses(group), baselines(group)
        halfway = Spread(tuple(_along(run)[_halfway(run)] for run in group))
        rows += [
            Row(
                id=f"{NAME}.{way}.heldout_loss",
                work=f"after {setting.steps} steps, mean of {len(group)} seeds; reference: the "
                "training images' mean feature of each position",
                value=last.mean(),
                unit="",
                reference=baseline.mean(),
                goal=1.0,  # below it the student has learned
            ),
            Row(
                id=f"{NAME}.{way}.heldout_loss_std",
                work="the same, standard deviation over the seeds",
                value=last.std(),
                unit="",
            ),
            Row(
                id=f"{NAME}.{way}.still_falling",
                work="held-out loss at the end; reference: halfway",
                value=last.mean(),
                unit="",
                reference=halfway.mean(),
                goal=1.0,
            ),
        ]
    return rows


def accuracy_rows(probed: dict[str, Spread], crops: Crops) -> list[Row]:
    """Rows of linear probes compared with chance, and of SAMI's gain over the control."""
    chance = 1 / len(crops.names)
    images = len(set(crops.files.tolist()))
    rows = []
    for name, spread in probed.items():
        what = f"{len(crops.labels)} crops of {len(crops.names)} categories from {images} images"
        rows += [
            Row(
                id=f"{NAME}.{name}.probe",
                work=f"balanced accuracy of a linear probe, {what}, mean of "
                f"{len(spread.values)} seeds; reference: chance",
                value=spread.mean(),
                unit="",
                reference=chance,
                better="higher",
            ),
            Row(
                id=f"{NAME}.{name}.probe_std",
                work="the same, standard deviation over the seeds",
                value=spread.std(),
                unit="",
            ),
        ]
    gain = probed["sami"].less(probed["mae"])
    rows.append(
        Row(
            id=f"{NAME}.gain_over_mae",
            work=f"SAMI's probe less the control's, seed by seed (std {gain.std():.4f})",
            value=gain.mean(),
            unit="",
            better="higher",
        )
    )
    return rows


def final_losses(runs: Sequence[PretrainResult]) -> Spread:
    """Held-out losses at the end."""
    return Spread(tuple(_known(run.heldout_loss) for run in runs))


def baselines(runs: Sequence[PretrainResult]) -> Spread:
    """Held-out losses of the mean feature."""
    return Spread(tuple(_known(run.mean_feature_loss) for run in runs))


def draw_losses(path: Path, way: str, runs: Sequence[PretrainResult]) -> None:
    """Held-out losses along the steps, beside the mean feature's."""
    losses = {f"seed {seed}": list(_along(run).values()) for seed, run in enumerate(runs)}
    baseline = {"mean feature": baselines(runs).mean()}
    loss_curve(path, f"held-out loss: {way}", list(_along(runs[0])), losses, baseline)


def _along(run: PretrainResult) -> dict[int, float]:
    """Held-out loss by step; the last one, measured twice, once."""
    return dict(run.history.heldout)


def _halfway(run: PretrainResult) -> int:
    steps = list(_along(run))
    return steps[(len(steps) - 1) // 2]


def _known(loss: float | None) -> float:
    assert loss is not None, "a study holds images out"
    return loss


def _description(setting: Setting, packed: PackedImages, teacher: str | None) -> str:
    taught = (
        f"a seeded teacher (SAM's architecture, width {setting.teacher_width}, depth 4, nothing "
        "learned)"
        if teacher is None
        else f"the released {Path(teacher).name}"
    )
    return (
        f"{packed.train_images} training and {packed.heldout_photos} held-out images (ImageNet's "
        f"sample and the COCO folders, each image once), crops of {setting.side} pixels, student "
        f"of width {setting.width} and depth {setting.depth}, batch {setting.batch}; {taught}. "
        "The probe's images are among those pretrained on, without their labels."
    )


def _loss_table(runs: dict[str, list[PretrainResult]]) -> str:
    """Held-out losses along the steps, mean and standard deviation over the seeds."""
    lines = ["| step | SAMI | MAE control |", "|---|---|---|"]
    means = [f"{baselines(runs[way]).mean():.4f}" for way in _WAYS]
    lines.append(f"| mean feature of each position | {' | '.join(means)} |")
    for step in _along(runs["sami"][0]):
        cells = [Spread(tuple(_along(run)[step] for run in runs[way])).text() for way in _WAYS]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "Held-out losses, each in units of its target:\n\n" + "\n".join(lines)


def _probe_table(probed: dict[str, Spread]) -> str:
    lines = ["| features | balanced accuracy |", "|---|---|"]
    lines += [f"| {name} | {spread.text(3)} |" for name, spread in probed.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
