"""Runs that an earlier version has stopped go on as they would have then.

The fixtures are written by write_checkpoints.py. The package is reached through its command alone.
"""

import importlib.util
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.golden_losses import running

HERE = Path(__file__).parent


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("writer", HERE / "write_checkpoints.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


writer = _module()


def unpacked(name: str, folder: Path) -> Path:
    with tarfile.open(writer.FIXTURES / f"{name}.tar.xz") as tar:
        tar.extractall(folder / name, filter="data")
    return folder / name


# The fixture, and what it goes on under: one rank, where two have written
CASES = {
    "ddp": ("finetune_ddp", ["trainer.ema_decay=0.5"]),
    "pretrain": ("pretrain", []),
    "fsdp": ("finetune_fsdp", ["trainer.strategy=fsdp"]),
}
CROSSED = {
    "fsdp as one file": ("finetune_fsdp", []),
    "ddp as shards": ("finetune_ddp", ["trainer.ema_decay=0.5", "trainer.strategy=fsdp"]),
}
Cases = dict[str, tuple[str, list[str]]]


def resumed(cases: Cases, home: Path) -> dict[str, Path]:
    """Folders of runs that went on, one after the other, in a process of their own."""
    given = []
    for case, (name, overrides) in cases.items():
        (home / case).mkdir()
        unpacked(name, home / case)
        given.append(writer.command_line(name, home / case, *overrides))
    running.run_commands(running.HERE, given)
    return {case: home / case / name for case, (name, _) in cases.items()}


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return resumed(CASES, tmp_path_factory.mktemp("same"))


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return resumed(CROSSED, tmp_path_factory.mktemp("crossed"))


@pytest.mark.parametrize("case", CASES)
def test_a_stored_run_goes_on_to_the_end_that_it_would_have_had(
    case: str, same: dict[str, Path]
) -> None:
    check(CASES[case][0], same[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", CROSSED)
def test_a_stored_run_goes_on_under_another_strategy(case: str, crossed: dict[str, Path]) -> None:
    check(CROSSED[case][0], crossed[case])


def check(name: str, run: Path) -> None:
    found: dict[str, Any] = json.loads(json.dumps(writer.outcome(run)))
    stored: dict[str, Any] = json.loads((writer.FIXTURES / f"{name}.json").read_text())
    # read from the checkpoint, and not measured again
    for key in ("best", "best_metric", "scores", "mean_feature_loss"):
        assert json.dumps(found[key]) == json.dumps(stored[key]), key  # nan equals nan
    assert found["counts"] == stored["counts"]
    assert found["position"] == stored["position"]
    assert found["consumed"] == stored["consumed"]
    for kind, curve in stored["curves"].items():
        assert [step for step, _ in found["curves"][kind]] == [step for step, _ in curve]
        losses = [loss for _, loss in curve]
        assert [loss for _, loss in found["curves"][kind]] == pytest.approx(losses, rel=1e-5)
    assert found["squares"].keys() == stored["squares"].keys()
    moved = {key: value for key, value in found["squares"].items() if not _is_noise(key)}
    expected = {key: stored["squares"][key] for key in moved}
    assert moved == pytest.approx(expected, rel=1e-3, abs=1e-12)


def _is_noise(name: str) -> bool:
    """Whether a tensor has a bias of keys, whose gradient is zero but for rounding.

    The pretraining decoder's is half of one tensor. It is not computed with any more, so that it
    stays where AdamW once moved it by the noise of its gradient.
    """
    return ".k_proj.bias" in name or ".key_value.bias" in name


class Names(pickle.Unpickler):
    """Notes the classes and functions that a pickle names, and makes nothing of them."""

    class Anything(dict):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def __setstate__(self, state: Any) -> None: ...
        def __hash__(self) -> int:  # type: ignore[override]
            return id(self)

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.modules: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.modules.add(module.split(".", maxsplit=1)[0])
        return self.Anything

    def persistent_load(self, pid: Any) -> None:
        return None


def modules_named_in(path: Path) -> set[str]:
    data = path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            [pickled] = [name for name in file.namelist() if name.endswith("data.pkl")]
            data = file.read(pickled)
    names = Names(data)
    names.load()
    return names.modules


@pytest.mark.parametrize("name", writer.RUNS)
def test_a_checkpoint_pickles_no_class_of_this_package(name: str, tmp_path: Path) -> None:
    [folder] = (unpacked(name, tmp_path) / "checkpoints").iterdir()
    files = [folder / file for file in json.loads((folder / "complete.json").read_text())["files"]]
    pickles = [path for path in files if path.suffix != ".distcp"]
    named = set[str]().union(*map(modules_named_in, pickles))
    assert "torch" in named
    assert named <= {"torch", "collections", "pathlib"}  # pathlib: in FSDP2's own
