"""Destinations of metrics and pictures. W&B's own run is written offline and read back."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from efficientsam_pl.errors import UserError
from efficientsam_pl.training.config import RunConfig, TrainerConfig
from efficientsam_pl.training.run import loggers
from efficientsam_pl.training.run.loggers import build_logger
from efficientsam_pl.training.trainer import check_hardware

ONE_WANDB_RUN = Path(__file__).with_name("one_wandb_run.py")


def test_tensorboard_is_the_default_and_writes_to_the_runs_log(tmp_path: Path) -> None:
    logger = build_logger(RunConfig(dir=str(tmp_path / "run")), TrainerConfig())
    assert isinstance(logger, TensorBoardLogger)
    assert Path(logger.log_dir) == tmp_path / "run" / "log"


def test_missing_wandb_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(loggers, "version", missing)
    (tmp_path / "wandb").mkdir()  # W&B leaves such folders, which can be imported
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError) as error:
        check_hardware(TrainerConfig(logger="wandb"))
    assert str(error.value) == (
        "trainer.logger=wandb needs another package: pip install 'efficientsam_pl[wandb]'"
    )
    with pytest.raises(UserError, match="needs another package"):
        build_logger(RunConfig(dir=str(tmp_path / "run")), TrainerConfig(logger="wandb"))
    check_hardware(TrainerConfig())


def chunks(content: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format, in which W&B writes: parts in blocks of 32 KiB.

    A part is four bytes of checksum, two of length, one that says whether it is a whole record
    (1), a first, middle or last part (2, 3, 4), and its bytes.
    """
    at, record = 7, b""  # behind W&B's own header
    while at + 7 <= len(content):
        left = 2**15 - at % 2**15
        if left < 7:  # too little for another part
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def recorded(folder: Path) -> list[dict[str, Any]]:
    """Read what was logged in W&B's offline runs, in the order of the runs."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    files = folder.glob("offline-run-*/*.wandb")
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns):
        for content in chunks(path.read_bytes()):
            record = Record()
            record.ParseFromString(content)
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            rows += [row | {"run": path.stem.removeprefix("run-")}] if row else []
    return rows


def wandb_run(folder: Path, *arguments: str) -> None:
    pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")
    quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, str(ONE_WANDB_RUN), str(folder), *arguments],
        check=True,
        env=os.environ | quiet,
        timeout=120,
    )


def test_scalars_learning_rates_and_pictures_arrive_at_wandb(tmp_path: Path) -> None:
    """A resumed run goes on with its own curves, a new one in the same process does not."""
    wandb_run(tmp_path, "auto", "auto", "none")
    rows = recorded(tmp_path / "log" / "wandb")
    losses = [
        (row["trainer/global_step"], row["train/loss"]) for row in rows if "train/loss" in row
    ]
    assert losses == [(1, 0.0), (2, 1.0)] * 3  # each run takes two steps
    rates = [(row["trainer/global_step"], row["lr-SGD"]) for row in rows if "lr-SGD" in row]
    assert rates == [(1, 0.5), (2, 0.5)] * 3
    pictures = [row for row in rows if "pictures/masks/count" in row]
    assert [row["trainer/global_step"] for row in pictures] == [2] * 3
    for row in pictures:
        (name,) = row["pictures/masks/filenames"]
        (file, *_) = (tmp_path / "log" / "wandb").glob(f"offline-run-*{row['run']}/files/{name}")
        with Image.open(file) as picture:
            assert (picture.size, picture.getpixel((0, 0))) == ((30, 20), (255, 0, 0))
    first, resumed, anew = (row["run"] for row in pictures)
    assert first == resumed != anew
    assert (tmp_path / "log" / "wandb_id").read_text() == anew
