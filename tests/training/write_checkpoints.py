"""Writes fixtures/: runs that were stopped at step 3, and what they do up to step 5.

python tests/training/write_checkpoints.py

The committed fixtures are of checkpoint version 3 and pin that format: write new ones beside them
when the version changes, and leave these as they are. A run's folder is reduced to what a resume
reads: config, trace, report, `latest`, `best` and one checkpoint, compressed to a sixth or less.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from benchmarks.golden_losses.shards import write_shards

FIXTURES = Path(__file__).with_name("fixtures")
STOPPED, LAST = 3, 5
_KEPT = ("config.yaml", "latest", "best", "consumed.jsonl", "data_report.json")
DAMAGED = (1, 6)  # photos

_ENCODER = {
    "width": 3,
    "depth": 1,
    "heads": 1,
    "image_size": 64,
    "position_grid": 4,
    "neck_channels": 8,
}
_MODEL = {
    "encoder": _ENCODER,
    "decoder": {"depth": 1, "heads": 2, "mlp_width": 8, "iou_head_width": 8},
}
_TRAINER = {
    "accelerator": "cpu",
    "max_steps": LAST,
    "global_batch": 4,
    "micro_batch": 2,
    "validate_every_steps": STOPPED,
    "checkpoint_every_steps": STOPPED,
    "checkpoints_kept": 1,  # the best one is kept besides
}
_COMMON: dict[str, Any] = {
    "optim": {"warmup_steps": 1, "peak_lr_batch": None, "peak_lr": 0.01},
    "data": {"workers": 0, "block_shards": 2, "max_bad_fraction": 1.0},
    "trainer": _TRAINER | {"best_metric": "heldout/loss"},
    "run": {"trace": True, "seed": 3},
}
_FINETUNE = _COMMON | {
    "masks": {"masks_per_image": 2, "clicks": 2, "max_area": 1.0},
    "prompts": {"max_clicks": 2},
    "validation": {"pictured": 0, "clicks": [1]},
}
_PRETRAIN = _COMMON | {
    "sami": {
        "student": _ENCODER,
        "decoder_depth": 1,
        "decoder_width": 4,
        "decoder_heads": 1,
    },
    "teacher": {
        "encoder": {"width": 6, "depth": 1, "heads": 1, "global_blocks": [0], "neck_channels": 4},
        "image_size": 64,
        "precision": "fp32",
    },
}

# By the fixture's name: the command, its config, and the overrides it was written with
RUNS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "finetune_ddp": (
        "finetune",
        _FINETUNE,
        ["trainer.strategy=ddp", "trainer.devices=2", "trainer.ema_decay=0.5"],
    ),
    "finetune_fsdp": (
        "finetune",
        _FINETUNE,
        ["trainer.strategy=fsdp", "trainer.devices=2"],
    ),
    "pretrain": ("pretrain", _PRETRAIN, []),
}


def command_line(name: str, folder: Path, *overrides: str) -> list[str]:
    """The command of a run in `FOLDER/NAME` on the shards that it writes into the folder."""
    command, config, _ = RUNS[name]
    if not (folder / "shards").exists():
        write_shards(folder / "shards", DAMAGED)
    for file, content in (("model", _MODEL), (name, config)):
        (folder / f"{file}.yaml").write_text(json.dumps(content))  # JSON is YAML
    own = [f"model.name={folder}/model.yaml"] if command == "finetune" else []
    return [
        *(command, "-c", f"{folder}/{name}.yaml", f"run.dir={folder}/{name}"),
        *(f"data.train={folder}/shards/train-*.tar", f"data.heldout={folder}/shards/held*.tar"),
        *own,
        *overrides,
    ]


def values_of(checkpoint: Path) -> dict[str, Any]:
    """The plain values, read with torch alone."""
    manifest = json.loads((checkpoint / "complete.json").read_text())
    values: dict[str, Any] = torch.load(checkpoint / manifest["values"], weights_only=True)
    return values


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors by name, read with torch alone."""
    if (checkpoint / "state.pt").exists():
        state: dict[str, Tensor] = torch.load(checkpoint / "state.pt", weights_only=True)
        return state
    reader = FileSystemReader(checkpoint / "state")
    sizes = reader.read_metadata().state_dict_metadata
    state = {
        name: torch.empty(told.size, dtype=told.properties.dtype) for name, told in sizes.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*assuming the intent is to load in a single process.*")
        load(state, storage_reader=reader, no_dist=True)
    return state


def outcome(run: Path) -> dict[str, Any]:
    """Collect a run's state at its last step, as far as it must not depend on a stop."""
    checkpoint = run / "checkpoints" / f"step-{LAST:08d}"
    values = values_of(checkpoint)
    callbacks = values["callbacks"]
    report = json.loads((run / "data_report.json").read_text())
    lines = [json.loads(line) for line in (run / "consumed.jsonl").read_text().splitlines()]
    return {
        "best": (run / "best").read_text().strip(),
        "best_metric": callbacks["RunCheckpoints"],
        "curves": callbacks["LossHistory"],
        "scores": callbacks.get("HeldoutScores"),
        "mean_feature_loss": callbacks.get("MeanFeatureBaseline", {}).get("loss"),
        "counts": {key: report[key] for key in ("seen", "bad")},
        "position": {key: values["StreamDataModule"][key] for key in ("epoch", "offset", "steps")},
        "consumed": [
            sorted(key for line in lines if line["step"] == step for key in line["keys"])
            for step in range(LAST)
        ],
        "squares": {  # summed, of weights and optimizer moments
            name: float(f"{float(tensor.double().square().sum()):.7g}")
            for name, tensor in sorted(tensors_of(checkpoint).items())
        },
    }


def _write(name: str, folder: Path) -> dict[str, Any]:
    arguments = command_line(name, folder, *RUNS[name][2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [sys.executable, "-m", "efficientsam_pl", *arguments], env=environment, check=True
    )
    expected = outcome(folder / name)
    run, first = folder / name, f"checkpoints/step-{STOPPED:08d}"
    assert (run / "best").read_text().strip() == first, "nothing is validated later"
    (run / "latest").write_text(f"{first}\n")
    with tarfile.open(FIXTURES / f"{name}.tar.xz", "w:xz") as tar:
        for part in (*_KEPT, first):
            tar.add(run / part, part, filter=_anonymous)
    return expected


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fixture") as folder:
        expected = {name: _write(name, Path(folder)) for name in RUNS}
    for name, values in expected.items():
        (FIXTURES / f"{name}.json").write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main()
