"""The command in this process and in one of its own, a tiny model, and shards."""

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam_pl.cli import main as cli
from efficientsam_pl.config import load as configs
from efficientsam_pl.data.packing.images import MaskedImage, pack_images
from efficientsam_pl.data.schema import annotation_of
from efficientsam_pl.export.consolidate import write_safetensors
from efficientsam_pl.inference.load import load_segmenter
from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.rle import encode

SCRIPT = Path(sys.executable).with_name("efficientsam")
COMMAND = [str(SCRIPT)] if SCRIPT.is_file() else [sys.executable, "-m", "efficientsam_pl"]
HEIGHT, WIDTH = 48, 64
MODEL = """\
encoder: {width: 24, depth: 1, heads: 3, image_size: 64, position_grid: 4, neck_channels: 32}
decoder: {mlp_width: 32, iou_head_width: 32}
"""
LOW_RES = 16  # a quarter of 64

ModelWriter = Callable[..., Path]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


class Command(ABC):
    """The console command."""

    @abstractmethod
    def __call__(self, *arguments: object, folder: Path | None = None) -> Outcome:
        """Run it, in a folder."""

    def mistake(self, *arguments: object, folder: Path | None = None) -> str:
        """The one line that a wrong command prints on stderr."""
        outcome = self(*arguments, folder=folder)
        assert outcome.code == 2, outcome
        assert "Traceback" not in outcome.err
        [line] = outcome.err.splitlines()
        assert line.startswith("efficientsam: ")
        return line

    def done(self, *arguments: object, folder: Path | None = None) -> str:
        """Return the output of a command that must succeed."""
        outcome = self(*arguments, folder=folder)
        assert (outcome.code, outcome.err) == (0, ""), outcome.err
        return outcome.out


class OwnProcess(Command):
    """The command as a user starts it."""

    def __call__(self, *arguments: object, folder: Path | None = None) -> Outcome:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return Outcome(done.returncode, done.stdout, done.stderr)


class InProcess(Command):
    """The same command without a process of its own, for tables of cases that import torch."""

    def __init__(self, capture: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capture, self._patch = capture, patch

    def __call__(self, *arguments: object, folder: Path | None = None) -> Outcome:
        with self._patch.context() as patch:
            if folder is not None:
                patch.chdir(folder)
            self._capture.readouterr()
            code = cli.main(list(map(str, arguments)))
        said = self._capture.readouterr()
        return Outcome(code, said.out, said.err)


@pytest.fixture(scope="session")
def process() -> OwnProcess:
    return OwnProcess()


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> InProcess:
    return InProcess(capfd, monkeypatch)


@pytest.fixture
def efficientsam(here: InProcess) -> Callable[..., tuple[int, list[str], str]]:
    """The command in this process: exit code, lines on stdout, stderr."""

    def run(*arguments: object) -> tuple[int, list[str], str]:
        outcome = here(*arguments)
        return outcome.code, outcome.out.splitlines(), outcome.err

    return run


@pytest.fixture(scope="session")
def write_model() -> ModelWriter:
    """Write a tiny model that nobody has trained: FOLDER/tiny.yaml, and its weights beside it."""

    def write(weights: Path, seed: int = 0, config: str = "tiny", more: str = "") -> Path:
        """`config` names the YAML file; `more` is appended to it."""
        file = weights.with_name(f"{config}.yaml")
        file.write_text(MODEL + more)
        shape = configs.load(SegmenterConfig, [str(file)], [])
        torch.manual_seed(seed)
        state = load_segmenter(shape, None).state_dict()
        record = configs.as_dict(shape)
        write_safetensors(weights, state, state.values(), record, {"stage": "test"})
        return weights

    return write


@dataclass(frozen=True)
class TinyModel:
    """A photo, models and their weights, and files that are none."""

    folder: Path

    @property
    def photo(self) -> Path:
        return self.folder / "photo.png"

    @property
    def model(self) -> Path:
        return self.folder / "tiny.yaml"

    @property
    def model_with_mask_prompts(self) -> Path:
        return self.folder / "tiny_masks.yaml"

    @property
    def weights(self) -> Path:
        return self.folder / "tiny.safetensors"

    def predict(self, *extra: object, **changes: object) -> list[object]:
        """Arguments of a prediction into OUT, with one option or another changed."""
        options: dict[str, object] = {"image": self.photo, "weights": self.weights, **changes}
        named = [part for name, value in options.items() for part in (f"--{name}", value)]
        return ["predict", *named, *extra]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, write_model: ModelWriter) -> TinyModel:
    here = TinyModel(tmp_path_factory.mktemp("tiny"))
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(here.photo)
    write_model(here.weights)
    more = "prompts: {mask_prompts: true, negative_clicks: true, max_points: null}\n"
    write_model(here.folder / "tiny_masks.safetensors", config="tiny_masks", more=more)
    (here.folder / "text.txt").write_text("no photo and no weights")
    (here.folder / "garbage.safetensors").write_bytes(b"\x07" * 500)
    (here.folder / "garbage.pt").write_bytes(b"\x07" * 500)
    (here.folder / "list.pt").write_bytes(b"")
    torch.save([1, 2, 3], here.folder / "list.pt")
    torch.save({"model": {"some.weight": torch.zeros(3)}}, here.folder / "other.pt")
    np.save(here.folder / "small.npy", np.zeros((4, 4), dtype=np.float32))
    np.save(here.folder / "cube.npy", np.zeros((2, LOW_RES, LOW_RES), dtype=np.float32))
    np.save(here.folder / "text.npy", np.array([["a", "b"]]))
    np.savez(here.folder / "several.npz", a=np.zeros(3))
    logits = np.full((LOW_RES, LOW_RES), -5, dtype=np.float32)
    logits[4:12, 4:12] = 5
    np.save(here.folder / "logits.npy", logits)
    return here


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos with two masks each, and a shard that is none."""
    folder = tmp_path_factory.mktemp("shards")
    draw = np.random.default_rng(1)
    photos = []
    for i in range(3):
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[5 : 20 + i, 8:40] = True
        masks = tuple(annotation_of(encode(m)) for m in (mask, ~mask))
        image = draw.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        photos.append(MaskedImage(f"p{i}", image, masks))
    pack_images(photos, folder, "set")
    (folder / "set-999999.tar").write_bytes(b"broken off")
    return folder
