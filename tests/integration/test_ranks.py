"""Real processes that train together over gloo: other numbers of them use the same samples."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from efficientsam_pl.cli import main as cli
from efficientsam_pl.data.packing.images import MaskedImage, pack_images
from efficientsam_pl.data.schema import annotation_of
from efficientsam_pl.rle import encode

CONFIG = """\
run: {trace: true}
optim: {warmup_steps: 1}
data: {block_shards: 2, max_bad_fraction: 0.5}
trainer: {accelerator: cpu, global_batch: 6, validate_every_steps: 2, checkpoint_every_steps: 2}
crop: {min_area: 0.5}
sami:
  student: {width: 24, depth: 1, heads: 3, image_size: 32, position_grid: 2, neck_channels: 32}
  decoder_depth: 1
  decoder_width: 32
  decoder_heads: 2
teacher:
  encoder: {width: 24, depth: 1, heads: 3, global_blocks: [0], neck_channels: 16}
  image_size: 32
"""


def photo(number: int) -> MaskedImage:
    image = np.full((32, 32, 3), 20 * number % 256, dtype=np.uint8)
    return MaskedImage(f"photo{number}", image, (annotation_of(encode(np.eye(32, dtype=bool))),))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Ten photos in shards of three, one of them broken, and five held out."""
    pack_images(map(photo, range(10)), tmp_path / "shards", "train", samples_per_shard=3)
    pack_images(map(photo, range(20, 25)), tmp_path / "shards", "heldout")
    path = tmp_path / "shards" / "train-000001.tar"
    data = bytearray(path.read_bytes())
    start = data.index(b"\xff\xd8\xff")
    data[start : start + 2] = b"no"
    path.write_bytes(bytes(data))
    return tmp_path / "shards"


def train(folder: Path, shards: Path, *overrides: str) -> None:
    """One rank is this process; several are Lightning's."""
    config = folder.parent / "config.yaml"
    config.write_text(CONFIG)
    arguments = ["pretrain", "-c", str(config), f"run.dir={folder}"]
    arguments += [f"data.train={shards}/train-*.tar", f"data.heldout={shards}/heldout-*.tar"]
    arguments += overrides
    if "trainer.devices=1" in overrides:
        assert cli.main(arguments) == 0
        return
    command = [sys.executable, "-m", "efficientsam_pl", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def steps(folder: Path) -> dict[int, list[str]]:
    """Sample keys of each step, all ranks together."""
    found: dict[int, list[str]] = {}
    for line in (folder / "consumed.jsonl").read_text().splitlines():
        entry: dict[str, Any] = json.loads(line)
        found.setdefault(entry["step"], []).extend(entry["keys"])
    return {step: sorted(keys) for step, keys in found.items()}


@pytest.mark.slow
def test_run_stopped_and_resumed_on_other_ranks_uses_the_same_batches(
    shards: Path, tmp_path: Path
) -> None:
    train(
        tmp_path / "straight",
        shards,
        "trainer.max_steps=6",
        "trainer.devices=1",
        "trainer.micro_batch=6",
        "data.workers=0",
    )
    legs = [
        ("trainer.max_steps=2", "trainer.devices=2", "trainer.micro_batch=3", "data.workers=1"),
        ("trainer.max_steps=4", "trainer.devices=1", "trainer.micro_batch=2", "data.workers=0"),
        ("trainer.max_steps=6", "trainer.devices=3", "trainer.micro_batch=1", "data.workers=2"),
    ]
    for leg in legs:
        train(tmp_path / "elastic", shards, *leg)
    assert steps(tmp_path / "elastic") == steps(tmp_path / "straight")
    flat = Counter(key for keys in steps(tmp_path / "elastic").values() for key in keys)
    assert set(flat) == {f"photo{number}" for number in range(10)}
    assert sorted(flat.values()) == [3] * 4 + [4] * 6  # 36 samples are three epochs and six
    reports = [
        json.loads((tmp_path / name / "data_report.json").read_text())
        for name in ("straight", "elastic")
    ]
    for report in reports:
        assert report["seen"] == 36
        assert report["bad"] == {"bad photo": flat["photo3"]}
        assert [entry["key"] for entry in report["list"]] == ["photo3"]
    for name in ("straight", "elastic"):
        logged = EventAccumulator(str(tmp_path / name / "log"))
        logged.Reload()
        photos = [event.value for event in logged.Scalars("heldout/photos")]
        assert set(photos) == {5.0}  # each once, whatever the ranks
