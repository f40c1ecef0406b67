"""A store that stays away: the run saves, stops with code 75, and continues as if never stopped."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.cluster.signals import catch_signals
from efficientsam_pl.config import load as configs
from efficientsam_pl.errors import SavedAndStopped, UserError
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.storage.retries import PATIENCE_VARIABLE, SourceLostError
from efficientsam_pl.training.lookahead import LookaheadLoader

Run = Callable[..., Any]
NO_PICTURES = "trainer.visualized_images=0"  # whose images are read apart


@pytest.fixture(scope="module")
def faulty() -> Iterator[Any]:
    """faulty_store.py as a module."""
    program = Path(__file__).with_name("faulty_store.py")
    spec = importlib.util.spec_from_file_location("faulty_store", program)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def stored(
    faulty: Any, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Keys that name the shards in a store whose reads can be made to fail."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(PATIENCE_VARIABLE, "0")
    yield faulty.upload(shards, "train-bucket")
    faulty.FaultyStore.reads_left, faulty.FaultyStore.error = None, ConnectionResetError("reset")
    catch_signals().restore_handlers()


def keys(url: str, *more: str) -> list[str]:
    return [
        f"data.train={url}/train-*.tar",
        "data.store_patience_s=0",
        "data.workers=0",
        *more,
        NO_PICTURES,
    ]


def consumed(folder: Path) -> list[Any]:
    lines = (folder / "consumed.jsonl").read_text().splitlines()
    return [(line["step"], line["keys"], line["loss"]) for line in map(json.loads, lines)]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(folder / "checkpoints" / f"step-{step:08d}")
    return reader.load_all()


@pytest.mark.parametrize("reads", [3, 5])
def test_run_that_loses_its_store_saves_and_continues_with_the_next_sample(
    reads: int, stage: str, faulty: Any, stored: str, run: Run, tmp_path: Path
) -> None:
    run(stage, tmp_path / "whole", *keys(stored))
    faulty.FaultyStore.reads_left = reads
    with pytest.raises(
        SavedAndStopped, match=r"since faulty://train-bucket/train-.* does not"
    ) as end:
        run(stage, tmp_path / "cut", *keys(stored))
    assert (end.value.code, end.value.requeue) == (75, True)
    step = int(str(end.value).split()[2])
    assert 0 < step < 6
    assert (tmp_path / "cut" / "checkpoints" / f"step-{step:08d}" / "complete.json").is_file()
    faulty.FaultyStore.reads_left = None
    catch_signals().restore_handlers()  # the continued run is another process
    run(stage, tmp_path / "cut", *keys(stored))
    assert consumed(tmp_path / "cut") == consumed(tmp_path / "whole")
    both = [weights(tmp_path / name, 6) for name in ("cut", "whole")]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[1])


def test_run_that_is_denied_access_saves_and_is_not_requeued(
    faulty: Any, stored: str, run: Run, tmp_path: Path
) -> None:
    faulty.FaultyStore.reads_left = 5
    faulty.FaultyStore.error = PermissionError("The provided token has expired.")
    with pytest.raises(SavedAndStopped, match=r"access is denied.*token has expired") as end:
        run("pretrain", tmp_path, *keys(stored))
    assert (end.value.code, end.value.requeue) == (2, False)


def test_run_that_has_all_it_needs_ends_as_if_nothing_were_lost(
    faulty: Any, stored: str, run: Run, tmp_path: Path
) -> None:
    faulty.FaultyStore.reads = 0
    run("pretrain", tmp_path / "whole", *keys(stored))
    faulty.FaultyStore.reads_left = faulty.FaultyStore.reads - 1  # Lightning fetches one too many
    run("pretrain", tmp_path / "cut", *keys(stored))
    assert consumed(tmp_path / "cut") == consumed(tmp_path / "whole")


def test_store_that_is_away_from_the_start_is_named(
    faulty: Any, stored: str, run: Run, tmp_path: Path
) -> None:
    faulty.FaultyStore.reads_left = 0
    with pytest.raises(SourceLostError, match=r"train-.*\.tar does not respond.*nothing is saved"):
        run("pretrain", tmp_path, *keys(stored))


def test_store_that_is_lost_in_a_validation_ends_a_run_that_has_saved(
    faulty: Any, stored: str, run: Run, tmp_path: Path
) -> None:
    more = (f"data.heldout={stored}/heldout-*.tar", "trainer.checkpoint_every_steps=100")
    real, begun = faulty.FaultyStore.cat_ranges, []

    def fails_for_heldout(self: Any, paths: Any, *args: Any, **kwargs: Any) -> Any:
        if any("heldout" in path for path in paths):
            begun.append(1)
            if len(begun) > 1:
                raise ConnectionResetError("reset")
        return real(self, paths, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faulty.FaultyStore, "cat_ranges", fails_for_heldout)
        with pytest.raises(
            SourceLostError, match=r"heldout-.*; the last checkpoint is .*step-0*3;"
        ):
            run("pretrain", tmp_path, *keys(stored, *more))
    assert len(weights(tmp_path, 3)) > 0


def test_patience_must_end_before_the_limits_of_a_run(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.store_patience_s=600 .*collective_timeout_s=600"):
        run("pretrain", tmp_path, "data.store_patience_s=600")


@pytest.mark.parametrize(("limit", "patience_s"), [("hang_s=90", 45), ("hang_s=3600", 300)])
def test_patience_is_by_default_at_most_half_of_a_limit(limit: str, patience_s: float) -> None:
    config = configs.load(PretrainConfig, [], ["data.train=x", f"interruption.{limit}"])
    assert config.store_patience_s() == patience_s


class Batches:
    """A loader of numbers that is lost at one of them."""

    def __init__(self, lost_at: int) -> None:
        self.lost_at, self.fetched = lost_at, 0
        self._iterator: Any = None

    def __iter__(self) -> Iterator[int]:
        while True:
            if self.fetched == self.lost_at:
                raise SourceLostError("lost")
            yield self.fetched
            self.fetched += 1


@pytest.mark.parametrize("per_step", [1, 2, 5])
@pytest.mark.parametrize("lost_at", range(0, 40, 3))
def test_batches_of_two_further_steps_are_left_when_the_loss_is_reported(
    per_step: int, lost_at: int
) -> None:
    reports: list[int] = []
    loader = Batches(lost_at)
    batches = LookaheadLoader(loader, per_step, 1000, lambda error: reports.append(len(given)))  # type: ignore[arg-type]
    given: list[int] = []
    with pytest.raises(SourceLostError):
        given.extend(batches)
    assert given == list(range(lost_at))
    assert len(reports) == 1
    assert lost_at - reports[0] >= min(2 * per_step, lost_at // 2)


def test_nothing_is_fetched_beyond_the_last_step_but_the_one_that_is_requested() -> None:
    loader = Batches(10)
    given = []
    for batch in LookaheadLoader(loader, 2, 10, lambda error: None):  # type: ignore[arg-type]
        given.append(batch)
        if len(given) == 10:
            assert loader.fetched <= 10
        if len(given) == 11:
            break
    assert given[:10] == list(range(10))


def test_low_limit_of_open_files_ends_a_run_at_once(shards: Path, tmp_path: Path) -> None:
    program = Path(__file__).with_name("toy_recipe.py")
    keys = (f"data.train={shards}/train-*.tar", f"run.dir={tmp_path}", "data.workers=8")
    small = ("trainer.accelerator=cpu", "optim.warmup_steps=1", "trainer.max_steps=6")
    done = subprocess.run(  # noqa: PLW1510  its code is checked below
        ["bash", "-c", 'ulimit -n 64 && exec "$@"', "bash", sys.executable, program, *keys, *small],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(program.parents[2]), *sys.path[1:]])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1  # of the program, which is no command
    assert "open files, but the limit is 64" in done.stderr.splitlines()[-1]
