"""The skeleton takes a stage of which it knows nothing: toy_recipe.py and no other file."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.checkpoints.state import join_state
from efficientsam_pl.errors import UserError
from efficientsam_pl.export.consolidate import consolidate
from efficientsam_pl.models.weights import read_weights

PROGRAM = Path(__file__).with_name("toy_recipe.py")
CONFIG = (
    *("trainer.accelerator=cpu", "trainer.max_steps=6", "trainer.global_batch=4"),
    *("trainer.micro_batch=2", "trainer.checkpoint_every_steps=3", "optim.warmup_steps=1"),
    *("trainer.validate_every_steps=3", "trainer.best_metric=heldout/loss"),
    *("optim.peak_lr=1e-3", "data.workers=0"),
)


def arguments(shards: Path, folder: Path, *overrides: str) -> list[str]:
    data = (f"data.train={shards}/train-*.tar", f"data.heldout={shards}/heldout-*.tar")
    return [f"run.dir={folder}", *data, *CONFIG, *overrides]


@pytest.fixture(scope="module")
def toy() -> Iterator[Any]:
    """toy_recipe.py as a module."""
    spec = importlib.util.spec_from_file_location("toy_recipe", PROGRAM)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def run_pair(*runs: list[str], code: int = 0) -> list[str]:
    """Run one after the other in two processes, as torchrun starts them; what each prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    common |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1"}
    common["PYTHONPATH"] = os.pathsep.join([str(PROGRAM.parents[2]), *sys.path[1:]])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), *(word for run in runs for word in ("--", *run))],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
            assert rank.stdout is not None
            rank.stdout.close()
    assert [rank.returncode for rank in ranks] == [code, code], "\n".join(outputs)
    return outputs


def weights(folder: Path, step: int = 6) -> dict[str, Tensor]:
    stored = CheckpointReader(folder / f"checkpoints/step-{step:08d}")
    state: dict[str, Tensor] = join_state(stored.load_all(), stored.values)["state_dict"]
    return state


@pytest.fixture(scope="module")
def alone(toy: Any, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "alone"
    toy.main(*arguments(shards, folder))
    return folder


def test_stage_learns_keeps_its_best_and_exports_its_whole_model(
    alone: Path, tmp_path: Path
) -> None:
    first, last = (CheckpointReader(alone / f"checkpoints/step-0000000{n}") for n in (3, 6))
    losses = [
        reader.values["callbacks"]["LossHistory"]["heldout"][-1][1] for reader in (first, last)
    ]
    assert losses[1] < losses[0]
    assert (alone / "best").read_text().strip() == "checkpoints/step-00000006"
    consolidate(last.folder, tmp_path / "toy.safetensors")
    exported = read_weights(str(tmp_path / "toy.safetensors")).state
    assert exported.keys() == {name.removeprefix("model.") for name in weights(alone)}


def test_resumed_stage_is_the_uninterrupted_one_to_the_bit(
    toy: Any, alone: Path, shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "resumed"
    toy.main(*arguments(shards, folder, f"run.resume={alone}/checkpoints/step-00000003"))
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-00000006"]
    expected, found = weights(alone), weights(folder)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_checkpoint_of_another_model_is_refused(
    toy: Any, alone: Path, shards: Path, tmp_path: Path
) -> None:
    changed = (f"run.resume={alone}/checkpoints/step-00000003", "model.width=16")
    with pytest.raises(UserError, match=r"of another model: model\.width was 24, now 16"):
        toy.main(*arguments(shards, tmp_path / "other", *changed))


@pytest.mark.slow
def test_a_single_rank_shards_nothing_and_its_checkpoints_fit_any_strategy(
    alone: Path, shards: Path, tmp_path: Path
) -> None:
    fsdp = "trainer.strategy=fsdp"
    sharded, to_plain, to_fsdp = (tmp_path / name for name in ("fsdp", "to-plain", "to-fsdp"))
    runs = [
        arguments(shards, sharded, fsdp),
        arguments(shards, to_plain, f"run.resume={sharded}/checkpoints/step-00000003"),
        arguments(shards, to_fsdp, fsdp, f"run.resume={alone}/checkpoints/step-00000003"),
    ]
    places = os.pathsep.join([str(PROGRAM.parents[2]), *sys.path[1:]])
    words = [word for run in runs for word in ("--", *run)]
    subprocess.run(
        [sys.executable, str(PROGRAM), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": places},
        check=True,
        timeout=300,
    )
    run_pair(
        arguments(
            shards, tmp_path / "pair", fsdp, f"run.resume={sharded}/checkpoints/step-00000003"
        )
    )
    expected = weights(alone)
    for folder in (sharded, to_plain, to_fsdp):
        for name, value in weights(folder).items():
            assert torch.equal(value, expected[name]), name
    for name, value in weights(tmp_path / "pair").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_take_the_steps_of_one_and_resume_to_the_bit(
    strategy: str, alone: Path, shards: Path, tmp_path: Path
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    way = (f"trainer.strategy={strategy}",)
    begun = f"run.resume={whole}/checkpoints/step-00000003"
    run_pair(arguments(shards, whole, *way), arguments(shards, resumed, *way, begun))
    expected, found = weights(alone), weights(whole)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for name, value in weights(resumed).items():
        assert torch.equal(value, found[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_whose_store_stays_away_save_one_step_and_continue(
    strategy: str,
    shards: Path,
    tmp_path: Path,
    web: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    served = web(shards)
    data = f"data.train={served.url}/train-00000{{0..2}}.tar"
    keys = (data, "data.store_patience_s=0", "trainer.max_steps=12", "run.trace=true")
    way = f"trainer.strategy={strategy}"

    def run(name: str) -> list[str]:
        return arguments(shards, tmp_path / name, *keys, way)

    run_pair(run("whole"))
    # of both ranks together: one of them is lost before the other, whichever is faster, and both
    # have made steps by then
    served.away_after = len(served.requests) * 2 // 3
    served.requests.clear()
    outputs = run_pair(run("cut"), code=1)
    saved = re.compile(r"saved step \d+ to .* since http://.*\.tar does not respond.*")
    assert len({saved.findall(output)[-1] for output in outputs}) == 1
    served.away_after = None
    run_pair(run("cut"))
    for name, value in weights(tmp_path / "whole", 12).items():
        assert torch.equal(value, weights(tmp_path / "cut", 12)[name]), name
