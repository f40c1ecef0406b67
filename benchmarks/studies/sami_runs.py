"""Shared parts of the SAMI pretraining studies: configs of a small student, losses, tables."""

import argparse
import datetime
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Row, common_parser, machine, versions
from benchmarks.studies.coco_folders import PackedImages
from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.checkpoints.select import latest_checkpoint
from efficientsam_pl.config.load import from_dict
from efficientsam_pl.data.build import build_reader
from efficientsam_pl.data.dataloaders import inference_loader
from efficientsam_pl.data.datasets.crops import CropDataset
from efficientsam_pl.data.sampler import RankShard
from efficientsam_pl.data.schema import IMAGE_SUFFIXES
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.losses.feature_loss import feature_losses
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.targets import build_target
from efficientsam_pl.models.weights import load_strictly, strip_prefix
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.structures import ImageBatch

_HEAD_WIDTH = 32  # channels
_BATCH = 32  # of the held-out images
_EVALUATION_SEED = 0  # of the held-out images' masks, independent of a run's seed


@dataclass(frozen=True)
class Setting:
    """Sizes of a study: small enough for two cores, large enough to learn something."""

    steps: int
    side: int = 112  # pixels of a crop
    width: int = 128
    depth: int = 4
    batch: int = 16
    measured: int = 8  # held-out losses per run
    teacher_width: int = 96  # of the seeded teacher, as in the quickstart
    long_side: int = 256  # of the packed images
    accelerator: str = "cpu"

    def grid(self) -> int:
        """Tokens per side."""
        return self.side // 16


def study_config(
    setting: Setting,
    packed: PackedImages,
    folder: Path,
    seed: int,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> PretrainConfig:
    """Config of a small SAMI run with a seeded teacher.

    Args:
        setting: Sizes.
        packed: Training and held-out images.
        folder: Folder of the run.
        seed: Seed of weights, order, crops and masks.
        changes: Section of the config -> key -> value, overriding the defaults.
    """
    every, pictured = -(-setting.steps // setting.measured), -(-setting.steps // 4)
    warmup = max(1, setting.steps // 10)
    values: dict[str, dict[str, Any]] = {
        "run": {"dir": str(folder), "seed": seed, "resume": "none"},
        "data": {"train": packed.train, "heldout": packed.heldout, "workers": 0},
        "sami": {
            "student": {
                "width": setting.width,
                "depth": setting.depth,
                "heads": setting.width // _HEAD_WIDTH,
                "image_size": setting.side,
                "position_grid": setting.grid(),
            },
            "decoder_depth": 2,
            "decoder_width": setting.width,
            "decoder_heads": setting.width // _HEAD_WIDTH,
        },
        "teacher": {
            "encoder": {
                "width": setting.teacher_width,
                "depth": 4,
                "heads": setting.teacher_width // _HEAD_WIDTH,
                "global_blocks": [3],
                "window": setting.grid(),  # a window covers the crop, as SAM's 14 do at 224
            },
            "image_size": setting.side,
            "precision": "fp32",
        },
        "optim": {"peak_lr": 1e-3, "peak_lr_batch": None, "warmup_steps": warmup},
        "trainer": {
            "accelerator": setting.accelerator,
            "max_steps": setting.steps,
            "global_batch": setting.batch,
            "micro_batch": setting.batch,
            "validate_every_steps": every,
            "checkpoint_every_steps": setting.steps,
            "picture_every_steps": pictured,
        },
    }
    for key, section in (changes or {}).items():
        values[key] = {**values.get(key, {}), **section}
    return from_dict(PretrainConfig, values)


@torch.inference_mode()
def online_loss(config: PretrainConfig, run: Path) -> float:
    """Compute a finished run's held-out loss against the online teacher.

    Args:
        config: The run's, without stored features.
        run: The folder whose last checkpoint is measured.
    """
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None, "a finished run has saved its last step"
    target = build_target(config.teacher, config.sami.student, stored=False)
    model = Sami(config.sami, target.width)
    state = strip_prefix(CheckpointReader(checkpoint).load_all(), "model.")
    load_strictly(model, state, str(checkpoint))
    model.eval()
    total, images = 0.0, 0
    for batch in heldout_batches(config):
        predicted, split = model(batch.image, batch.sample_key)
        losses = feature_losses(predicted, target(batch), split.masked, batch.valid, config.loss)
        valid = int(batch.valid.sum())
        total, images = total + float(losses.total) * valid, images + valid
    return total / images


def heldout_batches(config: PretrainConfig) -> Iterator[ImageBatch]:
    """Yield centre crops of the held-out images, each once, with the same masks for every run."""
    assert config.data.heldout is not None, "a study holds images out"
    shards = open_shards(config.data.heldout)
    stream = CropDataset(
        build_reader((shards,), IMAGE_SUFFIXES, config.data),
        None,
        config.sami.student.image_size,
        _EVALUATION_SEED,
        exact=True,
    )
    yield from inference_loader(stream, len(shards), RankShard(0, 1, _BATCH, _BATCH), workers=0)


@dataclass(frozen=True)
class Spread:
    """Values of a figure over several seeds."""

    values: tuple[float, ...]

    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    def std(self) -> float:
        """Sample standard deviation over the seeds; 0 for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def less(self, other: "Spread") -> "Spread":
        """Difference seed by seed, as both have equal initial weights, images and masks."""
        return Spread(tuple(a - b for a, b in zip(self.values, other.values, strict=True)))

    def text(self, digits: int = 4) -> str:
        """Format mean and standard deviation."""
        return f"{self.mean():.{digits}f} ± {self.std():.{digits}f}"


def study_parser(
    study: str, program: str, description: str, steps: int | None
) -> argparse.ArgumentParser:
    """Build the options that studies share.

    Args:
        study: Names the default output folder.
        program: Name after `python -m benchmarks.`.
        description: For `--help`.
        steps: Default of `--steps`; None if it depends on the study.
    """
    parser = common_parser(program, description)
    parser.add_argument("--out", type=Path, default=Path(f"{study}_out"), help="a folder")
    parser.add_argument("--steps", type=int, default=steps, help="of each run")
    parser.add_argument("--seeds", type=int, default=3)
    return parser


def write_markdown(
    path: Path, title: str, command: str, words: Sequence[str], rows: Sequence[Row]
) -> None:
    """Write results in the format of benchmarks/results.

    Args:
        path: The file.
        title: Its heading.
        command: Command line of the study.
        words: Paragraphs and tables above the rows.
        rows: All rows of the benchmark.
    """
    host = machine()
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    head = (
        f"{datetime.date.today().isoformat()}. {host['cpu']}, {host['cores']} cores, "
        f"{host['threads']} threads, load {host['load_1min']}; {packages}."
    )
    lines = ["| id | value | reference | ratio | goal | met |", "|---|---|---|---|---|---|"]
    for row in rows:
        goal = "" if row.goal is None else f"{'<=' if row.better == 'lower' else '>='} {row.goal:g}"
        met = {True: "yes", False: "no", None: ""}[row.met()]
        cells = (row.id, f"{row.value:.4g} {row.unit}".strip(), *_numbers(row), goal, met)
        lines.append(f"| {' | '.join(cells)} |")
    works = [f"- {row.id}: {row.work}" for row in rows]
    blocks = [f"# {title}", head, f"    {command}", *words, "\n".join(lines), "\n".join(works)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(blocks) + "\n")


def _numbers(row: Row) -> tuple[str, str]:
    ratio = row.ratio()
    return (
        "" if row.reference is None else f"{row.reference:.4g}",
        "" if ratio is None else f"{ratio:.4g}",
    )
