"""Check that SAMI learns: a small student on the real images at hand, against an MAE control.

Both see the same crops with the same masks, have the same encoder, the same initial weights of
it, the same decoder sizes, steps and learning rate. What differs is what makes the control one:
normalised pixels instead of the teacher's features, MAE's own decoder, the loss over masked
tokens alone. A linear probe judges both encoders, untrained ones of the same seeds and raw pixels.
Without `--teacher FILE` the teacher is seeded: SAM's architecture with nothing learned.
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
_HELDOUT_EVERY = 5  # photos
_WAYS = ("sami", "mae")
_CONTROL: dict[str, dict[str, Any]] = {
    "teacher": {"kind": "pixels"},
    "loss": {"tokens": "masked"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, probes, prints, and leaves runs, pictures and a Markdown file in a folder."""
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
    """All rows; runs lie in `OUT/sami-0` and so on, with their pictures.

    Args:
        setting: Sizes.
        seeds: How many.
        out: For everything that is left.
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
    words = [_told(setting, packed, teacher), _loss_table(runs), _probe_table(probed)]
    command = f"python -m benchmarks.{PROGRAM} --steps {setting.steps} --seeds {seeds}"
    write_markdown(out / f"{NAME}.md", "Does SAMI learn?", command, words, rows)
    return rows


def config_of(
    way: str, setting: Setting, packed: PackedImages, folder: Path, seed: int, teacher: str | None
) -> PretrainConfig:
    """The config of one run."""
    if way == "mae":
        config = study_config(setting, packed, folder, seed, _CONTROL)
        return replace(config, sami=replace(config.sami, decoder="self_attention"))
    config = study_config(setting, packed, folder, seed)
    if teacher is None:
        return config
    shape = as_dict(teacher_encoder(teacher))
    own = {"encoder": shape, "weights": teacher, "image_size": setting.side, "precision": "bf16"}
    return study_config(setting, packed, folder, seed, {"teacher": own})


def probed_accuracies(
    runs: dict[str, list[PretrainResult]], setting: Setting, crops: Crops, seeds: int
) -> dict[str, Spread]:
    """Balanced accuracy of each encoder; the folds are a seed's own, and the same for all."""
    found: dict[str, list[float]] = {name: [] for name in (*_WAYS, "untrained", "raw_pixels")}
    shape = study_config(setting, PackedImages("-", "-", 0, 0), Path("-"), 0).sami.student
    for seed in range(seeds):
        features = {way: load_encoder(runs[way][seed].encoder) for way in _WAYS}
        features["untrained"] = untrained(shape, seed)
        for name, trunk in features.items():
            found[name].append(probe(encoder_features(trunk, crops.images), crops, seed).balanced)
        found["raw_pixels"].append(probe(raw_pixels(crops.images), crops, seed).balanced)
    return {name: Spread(tuple(values)) for name, values in found.items()}


def loss_rows(runs: dict[str, list[PretrainResult]], setting: Setting) -> list[Row]:
    """Held-out losses beside the mean feature's, and whether they still fell."""
    rows = []
    for way, own in runs.items():
        last, baseline = final_losses(own), baselines(own)
        halfway = Spread(tuple(_along(run)[_halfway(run)] for run in own))
        rows += [
            Row(
                id=f"{NAME}.{way}.heldout_loss",
                work=f"after {setting.steps} steps, mean of {len(own)} seeds; reference: the "
                "training photos' mean feature of each position",
                value=last.mean(),
                unit="",
                reference=baseline.mean(),
                goal=1.0,  # below it something was learned
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
    """Linear probes beside chance, and SAMI's gain over the control."""
    chance = 1 / len(crops.names)
    photos = len(set(crops.photos.tolist()))
    rows = []
    for name, spread in probed.items():
        what = f"{len(crops.labels)} crops of {len(crops.names)} categories from {photos} photos"
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
    assert loss is not None, "a study holds photos out"
    return loss


def _told(setting: Setting, packed: PackedImages, teacher: str | None) -> str:
    taught = (
        f"a seeded teacher (SAM's architecture, width {setting.teacher_width}, depth 4, nothing "
        "learned)"
        if teacher is None
        else f"the released {Path(teacher).name}"
    )
    return (
        f"{packed.train_images} training and {packed.heldout_photos} held-out photos (ImageNet's "
        f"sample and the COCO folders, each photo once), crops of {setting.side} pixels, student "
        f"of width {setting.width} and depth {setting.depth}, batch {setting.batch}; {taught}. "
        "The probe's photos are among those pretrained on, without their labels."
    )


def _loss_table(runs: dict[str, list[PretrainResult]]) -> str:
    """Held-out losses along the steps, mean and standard deviation over the seeds."""
    lines = ["| step | SAMI | MAE control |", "|---|---|---|"]
    means = [f"{baselines(runs[way]).mean():.4f}" for way in _WAYS]
    lines.append(f"| mean feature of each position | {' | '.join(means)} |")
    for step in _along(runs["sami"][0]):
        cells = [Spread(tuple(_along(run)[step] for run in runs[way])).text() for way in _WAYS]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "Held-out losses, each in units of its own target:\n\n" + "\n".join(lines)


def _probe_table(probed: dict[str, Spread]) -> str:
    lines = ["| features | balanced accuracy |", "|---|---|"]
    lines += [f"| {name} | {spread.text(3)} |" for name, spread in probed.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
