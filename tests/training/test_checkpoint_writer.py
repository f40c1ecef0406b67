"""Checkpoints of whole runs: behind training, on a full disk, torn, and of shards."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from efficientsam_pl.checkpoints import writer
from efficientsam_pl.checkpoints.layout import MANIFEST, read_manifest
from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.checkpoints.select import latest_checkpoint, latest_valid_checkpoint
from efficientsam_pl.checkpoints.state import is_weight
from efficientsam_pl.commands import consolidate
from efficientsam_pl.errors import UserError

Run = Callable[..., Any]
EVERY = ("trainer.checkpoint_every_steps=1", "trainer.checkpoints_kept=9")
SHARDED = ("trainer.strategy=fsdp", "trainer.devices=2", "trainer.micro_batch=2")


def steps(folder: Path) -> list[int]:
    return sorted(read_manifest(path).step for path in (folder / "checkpoints").iterdir())


def same(one: Path, other: Path, step: int) -> bool:
    name = f"checkpoints/step-{step:08d}"
    first, second = (CheckpointReader(at / name).load_all() for at in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_state_written_behind_training_is_that_of_its_step(run: Run, tmp_path: Path) -> None:
    run("finetune", tmp_path / "waits", *EVERY)
    run("finetune", tmp_path / "goes_on", *EVERY, "trainer.checkpoint_writing=background")
    for step in range(1, 7):
        assert same(tmp_path / "waits", tmp_path / "goes_on", step)


def test_every_nth_stays(run: Run, tmp_path: Path) -> None:
    every = ("trainer.checkpoint_every_steps=1", "trainer.checkpoints_kept=1")
    run("finetune", tmp_path / "run", *every, "trainer.checkpoint_forever_every_steps=2")
    assert steps(tmp_path / "run") == [2, 4, 6]


@pytest.mark.parametrize("writing", ["blocking", "background"])
def test_full_disk_costs_checkpoints_and_the_run_goes_on(
    writing: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    saved, real = [], torch.save

    def full_from_3_to_5(state: Any, path: Any) -> None:
        if Path(path).name == "state.pt":
            saved.append(path)
            if 3 <= len(saved) <= 5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(state, path)

    monkeypatch.setattr(writer.torch, "save", full_from_3_to_5)
    folder = tmp_path / "run"
    run("finetune", folder, *EVERY, f"trainer.checkpoint_writing={writing}")
    assert steps(folder) == [1, 2, 6]
    logged = [r.message for r in caplog.records if "COULD NOT BE WRITTEN" in r.message]
    assert len(logged) == 3
    assert "No space left on device" in logged[0]
    assert {path.name[:4] for path in (folder / "checkpoints").iterdir()} == {"step"}


def test_run_whose_last_checkpoint_finds_no_room_says_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.save

    def full(state: Any, path: Any) -> None:
        if "step-00000006" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(state, path)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(writer.torch, "save", full)
        with pytest.raises(UserError, match=r"ended at step 6, but its last checkpoint could not"):
            run("finetune", folder)
    assert (folder / "latest").read_text() == "checkpoints/step-00000003\n"
    run("finetune", folder)
    run("finetune", tmp_path / "straight")
    assert same(folder, tmp_path / "straight", 6)


@pytest.mark.parametrize("how", ["cut", "flipped", "gone", "no manifest"])
def test_damaged_newest_checkpoint_is_skipped_for_the_one_before(
    how: str, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    run("finetune", folder, *EVERY, stop_after=4)
    newest = folder / "checkpoints/step-00000004"
    state = newest / "state.pt"
    content = bytearray(state.read_bytes())
    if how == "cut":
        state.write_bytes(content[:-100])
    elif how == "flipped":
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif how == "gone":
        state.unlink()
    else:
        (newest / MANIFEST).unlink()
    assert latest_valid_checkpoint(folder).name == "step-00000003"
    assert "IS CORRUPT" in caplog.text
    with pytest.raises(UserError, match=r"step-00000004"):
        run("finetune", tmp_path / "other", f"run.resume={newest}")
    run("finetune", folder, *EVERY)
    run("finetune", tmp_path / "straight", *EVERY)
    assert same(folder, tmp_path / "straight", 6)


def test_checkpoint_that_is_named_is_gone_on_from(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run("finetune", folder, *EVERY)
    run("finetune", tmp_path / "other", *EVERY, f"run.resume={folder}/checkpoints/step-00000002")
    assert steps(tmp_path / "other") == [3, 4, 5, 6]
    assert same(folder, tmp_path / "other", 6)


@pytest.mark.slow
def test_shards_become_one_file_without_a_process_group(
    run: Run, shards: Path, stage_files: dict[str, Path], tmp_path: Path
) -> None:
    """The run resumes from them in one process, and back: the file is the same weights."""
    folder = tmp_path / "run"
    script = Path(__file__).with_name("one_run.py")

    def start(*given: str) -> None:
        command = [sys.executable, str(script), "pretrain", str(stage_files["pretrain"]), "-"]
        command += [f"run.dir={folder}", f"data.train={shards}/train-*.tar", *EVERY, *given]
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]

    start(*SHARDED, "trainer.max_steps=2", "trainer.checkpoint_writing=background")
    newest = latest_checkpoint(folder)
    assert newest is not None
    assert read_manifest(newest).kind == "sharded"
    assert len(list((newest / "state").glob("*.distcp"))) == 2
    out = consolidate.run(folder, tmp_path / "out.safetensors")
    held = dict(CheckpointReader(newest).tensors(is_weight))
    for name, tensor in load_file(out).items():
        own = name.replace("image_encoder.trunk.", "model.encoder.")
        assert torch.equal(tensor, held[own])
    run("pretrain", folder, *EVERY, "trainer.max_steps=3")
    start(*SHARDED, "trainer.max_steps=4")
    kinds = [read_manifest(path).kind for path in sorted((folder / "checkpoints").iterdir())]
    assert kinds == ["sharded", "sharded", "plain", "sharded"]
