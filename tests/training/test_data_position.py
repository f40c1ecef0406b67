"""A run's position in its data, skipped samples, and its reports of corrupt ones over restarts."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientsam_pl.checkpoints.layout import replace_values
from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.errors import UserError
from efficientsam_pl.records import CorruptSample
from efficientsam_pl.training.callbacks.data_report import SampleCounts

Run = Callable[..., Any]
PHOTOS = {f"photo{i}" for i in range(10)}


def trace(folder: Path) -> list[list[str]]:
    """Sample keys of each step."""
    lines = (folder / "consumed.jsonl").read_text().splitlines()
    return [json.loads(line)["keys"] for line in lines]


def flat(steps: list[list[str]]) -> list[str]:
    return list(chain.from_iterable(steps))


def report(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "data_report.json").read_text())
    return loaded


def test_last_batch_of_an_epoch_may_be_dropped_or_padded(run: Run, tmp_path: Path) -> None:
    run("pretrain", tmp_path / "drop", "data.last_batch=drop", "trainer.max_steps=4")
    epochs = [flat(trace(tmp_path / "drop")[i : i + 2]) for i in (0, 2)]
    assert [len(set(epoch)) for epoch in epochs] == [8, 8]  # 10 photos in batches of 4
    run("pretrain", tmp_path / "pad", "data.last_batch=pad", "trainer.max_steps=6")
    steps = trace(tmp_path / "pad")
    for first in (0, 3):
        epoch = flat(steps[first : first + 3])
        assert Counter(epoch) == Counter(PHOTOS) + Counter({"": 2})
    assert report(tmp_path / "pad")["seen"] == 20  # padding is nothing that was seen


def test_stopped_runs_with_padded_epochs_go_on_where_they_were(
    stage: str, run: Run, tmp_path: Path
) -> None:
    options = ("data.last_batch=pad", "trainer.checkpoint_every_steps=1")
    run(stage, tmp_path / "straight", *options)
    run(stage, tmp_path / "stopped", *options, stop_after=2)
    run(stage, tmp_path / "stopped", *options, "data.workers=1", stop_after=4)
    run(stage, tmp_path / "stopped", *options, "trainer.micro_batch=2")
    straight, stopped = (flat(trace(tmp_path / name)) for name in ("straight", "stopped"))
    assert stopped == straight


def test_position_in_other_shards_or_of_another_version_is_refused(
    run: Run, shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run("pretrain", folder, "trainer.max_steps=3")
    with pytest.raises(UserError, match=r"to other shards .* run\.resume=none starts from scratch"):
        run("pretrain", folder, f"data.train={shards}/heldout-*.tar")
    [checkpoint] = (folder / "checkpoints").glob("step-*")
    values = CheckpointReader(checkpoint).values
    values["StreamDataModule"]["version"] = 1
    torch.save(values, checkpoint / "of_version_1.pt")
    replace_values(checkpoint, "of_version_1.pt")
    with pytest.raises(UserError, match="has version 1, this program reads version 2"):
        run("pretrain", folder)


def test_dropping_all_there_is_is_refused(run: Run, tmp_path: Path) -> None:
    options = ("data.last_batch=drop", "trainer.global_batch=12", "trainer.micro_batch=6")
    with pytest.raises(UserError, match=r"drop leaves no batch of 10 samples .*global_batch=12"):
        run("pretrain", tmp_path / "run", *options)


def test_heldout_shards_are_never_trained_on(run: Run, shards: Path, tmp_path: Path) -> None:
    every, heldout = f"data.train={shards}/*.tar", f"data.heldout={shards}/heldout-*.tar"
    run("pretrain", tmp_path / "run", every, heldout)
    assert set(flat(trace(tmp_path / "run"))) == PHOTOS


def test_subepochs_validate_and_save_so_many_times_an_epoch(
    run: Run, shards: Path, tmp_path: Path
) -> None:
    options = (f"data.heldout={shards}/heldout-*.tar", "trainer.subepochs=2")
    batch = ("trainer.global_batch=1", "trainer.micro_batch=1", "trainer.max_steps=20")
    done = run("pretrain", tmp_path / "run", *options, *batch, "trainer.checkpoints_kept=9")
    assert [step for step, _ in done.history.heldout][:4] == [5, 10, 15, 20]  # of ten photos
    saved = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert [int(path.stem.split("-")[1]) for path in saved] == [5, 10, 15, 20]


@pytest.mark.slow
def test_mixture_keeps_its_shares_through_a_stop(run: Run, shards: Path, tmp_path: Path) -> None:
    sets = f"[{{shards: {shards}/train-*.tar, weight: 3}}, {{shards: {shards}/heldout-*.tar}}]"
    options = ("data.train=''", f"data.mixture={sets}", "trainer.checkpoint_every_steps=1")
    length = ("trainer.max_steps=100",)
    run("pretrain", tmp_path / "straight", *options, *length, "trainer.checkpoints_kept=1")
    run("pretrain", tmp_path / "stopped", *options, *length, stop_after=7)
    run("pretrain", tmp_path / "stopped", *options, *length, stop_after=60)
    keys = flat(trace(tmp_path / "straight"))
    assert flat(trace(tmp_path / "stopped")) == keys[: 4 * 60]
    trained = sum(key in PHOTOS for key in keys)
    assert trained / len(keys) == pytest.approx(0.75, abs=0.09)  # 4 deviations of 400 draws


@pytest.fixture
def one_broken(shards: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in shards.glob("train-*.tar"):
        shutil.copy(path, folder)
    data = bytearray((folder / "train-000001.tar").read_bytes())
    start = data.index(b"\xff\xd8\xff")
    data[start : start + 2] = b"\x00\x00"
    (folder / "train-000001.tar").write_bytes(bytes(data))
    return folder


def test_report_goes_on_counting_after_a_restart(
    stage: str, run: Run, one_broken: Path, tmp_path: Path
) -> None:
    options = (f"data.train={one_broken}/*.tar", "data.max_bad_fraction=0.5")
    run(stage, tmp_path / "run", *options, "trainer.max_steps=10", stop_after=3)
    run(stage, tmp_path / "run", *options, "trainer.max_steps=10")
    written = report(tmp_path / "run")
    assert (written["seen"], written["good"], written["bad"]) == (40, 36, {"bad photo": 4})
    assert len(written["list"]) == 1


def test_shard_that_vanished_is_told_and_its_samples_keep_their_slots(
    run: Run, one_broken: Path, tmp_path: Path
) -> None:
    options = (f"data.train={one_broken}/*.tar", "data.max_bad_fraction=1")
    run("pretrain", tmp_path / "first", *options, "trainer.max_steps=2")  # makes the manifest
    (one_broken / "train-000000.tar").unlink()
    run("pretrain", tmp_path / "run", *options, "trainer.max_steps=5")
    written = report(tmp_path / "run")
    assert written["seen"] == 20
    assert written["shards"][f"{one_broken}/train-000000.tar"] == {"missing shard": 2 * 4}
    assert sum(written["bad"].values()) == written["seen"] - written["good"]
    [broken] = written["broken_shards"]
    assert broken["kind"] == "missing shard"
    assert Counter(flat(trace(tmp_path / "run"))) == dict.fromkeys(PHOTOS, 2)


def test_damage_is_told_in_the_log(
    run: Run, one_broken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("pretrain", tmp_path / "run", f"data.train={one_broken}/*.tar", "data.max_bad_fraction=1")
    logged = [
        record.getMessage() for record in caplog.records if "bad photo" in record.getMessage()
    ]
    assert logged
    assert "train-000001.tar photo4: bad photo" in logged[0]


def test_tallies_add_up_and_survive_being_written() -> None:
    one, other = (
        SampleCounts(),
        SampleCounts(shards={CorruptSample("c", "", "missing shard", "d"): None}),
    )
    one.add(
        5, [CorruptSample("a", "k", "bad photo", "d"), CorruptSample("a", "l", "bad json", "d")]
    )
    other.add(
        7, [CorruptSample("a", "k", "bad photo", "d"), CorruptSample("b", "m", "bad json", "d")]
    )
    one.merge(other)
    written = one.as_json()
    assert (written["seen"], written["good"]) == (12, 8)
    assert written["bad"] == {"bad json": 2, "bad photo": 2}
    assert written["shards"] == {"a": {"bad json": 1, "bad photo": 2}, "b": {"bad json": 1}}
    assert len(written["list"]) == 3
    assert [broken["shard"] for broken in written["broken_shards"]] == ["c"]
    assert SampleCounts.from_json(json.loads(json.dumps(written))).as_json() == written


def test_heldout_damage_is_reported_apart(
    run: Run, shards: Path, one_broken: Path, tmp_path: Path
) -> None:
    heldout = (f"data.heldout={one_broken}/train-*.tar", f"data.train={shards}/heldout-*.tar")
    run("pretrain", tmp_path / "run", *heldout, "trainer.validate_every_steps=2")
    written = report(tmp_path / "run")
    assert (written["seen"], written["good"]) == (24, 24)
    assert (written["heldout"]["seen"], written["heldout"]["bad"]) == (10, {"bad photo": 1})


def test_one_damaged_image_among_the_first_stops_no_run(
    run: Run, one_broken: Path, tmp_path: Path
) -> None:
    train = f"data.train={one_broken}/*.tar"
    run("pretrain", tmp_path / "run", train, "trainer.max_steps=4")  # the default is 1 %
    assert report(tmp_path / "run")["bad"]["bad photo"] < 3


def test_report_is_there_while_the_run_is(run: Run, one_broken: Path, tmp_path: Path) -> None:
    options = (f"data.train={one_broken}/*.tar", "data.max_bad_fraction=1")
    folder = tmp_path / "run"
    run("pretrain", folder, *options, "trainer.checkpoint_every_steps=1", stop_after=2)
    assert report(folder)["seen"] == 8


@pytest.mark.parametrize(
    ("key", "value"), [("run.seed", 7), ("data.block_shards", 1), ("data.neighbours", 2)]
)
def test_position_in_another_order_is_refused(
    key: str, value: int, run: Run, tmp_path: Path
) -> None:
    run("pretrain", tmp_path / "run", "trainer.max_steps=3")
    with pytest.raises(UserError, match=rf"{key} was \d+ when .* now it is {value}"):
        run("pretrain", tmp_path / "run", f"{key}={value}", "run.changed=accept")
