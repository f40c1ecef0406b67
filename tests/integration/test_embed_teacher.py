"""`efficientsam embed-teacher` as a user meets it, and its store read by training's streams."""

import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam_pl.cli import main as cli
from efficientsam_pl.config import load as configs
from efficientsam_pl.data.build import open_splits
from efficientsam_pl.data.config import SetConfig
from efficientsam_pl.data.dataloaders import inference_loader
from efficientsam_pl.data.packing.writer import PackedSample, write_shard
from efficientsam_pl.data.sampler import RankShard, SampleRef
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.teacher import FrozenTeacher
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.recipes.sami.feature_store import describe, stored_datasets
from efficientsam_pl.structures import ImageBatch

if TYPE_CHECKING:
    from tests.integration.conftest import InProcess

Command = Callable[..., tuple[int, list[str], str]]
CONFIG = """\
optim: {warmup_steps: 1}
data: {workers: 0}
trainer: {accelerator: cpu, global_batch: 6, micro_batch: 3}
crop: {min_area: 0.4}
features: {views: 2, seed: 5}
sami:
  student: {width: 24, depth: 1, heads: 3, image_size: 32, position_grid: 2, neck_channels: 32}
  decoder_depth: 1
  decoder_width: 32
  decoder_heads: 2
teacher:
  encoder: {width: 24, depth: 1, heads: 3, global_blocks: [0], neck_channels: 16}
  image_size: 64
  precision: fp32
"""
PHOTOS = ["features.kind=photos", "features.grid=2"]
KINDS = pytest.mark.parametrize("kind", [[], PHOTOS], ids=["views", "photos"])
NAMES = ["train-0.tar", "train-1.tar", "train-2.tar"]


def jpeg(number: int) -> bytes:
    draw = np.random.default_rng(number)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    size = (50 + 10 * (number % 3), 80 - 10 * (number % 4))
    data = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(data, "JPEG", quality=95)
    return data.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images in three shards, the fifth broken, two held out, and the config."""
    out = tmp_path_factory.mktemp("embed")
    for name, numbers in zip([*NAMES, "heldout.tar"], ("012", "34", "56", "78"), strict=True):
        samples = [PackedSample(f"p{n}", {"jpg": jpeg(int(n))}) for n in numbers]
        if name == NAMES[1]:
            samples[1] = PackedSample("p4", {"jpg": b"no photo"})
        write_shard(f"{out}/shards/{name}", samples)
    (out / "config.yaml").write_text(CONFIG)
    return out


def options(folder: Path, store: Path, *more: str) -> list[str]:
    return [
        *("-c", f"{folder}/config.yaml"),
        f"data.train={folder}/shards/train-*.tar",
        f"data.heldout={folder}/shards/heldout.tar",
        f"features.dir={store}",
        *more,
    ]


def config(folder: Path, store: Path, *more: str) -> PretrainConfig:
    _, file, *overrides = options(folder, store, *more)
    return configs.load(PretrainConfig, [file], overrides)


def tars(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("**/*.tar")}


@pytest.fixture(scope="module")
def stores(folder: Path) -> dict[str, Path]:
    """A store of each kind, written in one go."""
    made = {}
    for name, more in (("views", []), ("photos", PHOTOS), ("int8", ["features.numbers=int8"])):
        made[name] = folder / name
        assert cli.main(["embed-teacher", *options(folder, made[name], *more)]) == 0
    return made


def batches(given: PretrainConfig, heldout: bool = False) -> list[ImageBatch]:
    """The first epoch."""
    sets = open_splits(given.data)
    train, held = stored_datasets(given, sets)
    dataset = held if heldout else train
    assert dataset is not None
    samples = len(sets.heldout or ()) if heldout else sets.samples()
    return list(inference_loader(dataset, samples, RankShard(0, 1, 3, 3), 0))


@pytest.mark.parametrize("heldout", [False, True])
def test_views_hold_what_the_online_teacher_gives(
    heldout: bool, folder: Path, stores: dict[str, Path]
) -> None:
    given = config(folder, stores["views"])
    teacher, valid = FrozenTeacher(given.teacher, given.sami.student.grid()), 0
    for batch in batches(given, heldout):
        assert batch.features is not None
        online = teacher(batch.image).half()
        # the batch of a matrix product may change its last bit
        torch.testing.assert_close(
            batch.features[batch.valid], online[batch.valid], atol=2e-3, rtol=2e-3
        )
        valid += int(batch.valid.sum())
    assert valid == (2 if heldout else 6)


def test_int8_is_near_float16(folder: Path, stores: dict[str, Path]) -> None:
    exact = batches(config(folder, stores["views"]))
    rounded = batches(config(folder, stores["int8"], "features.numbers=int8"))
    for reference, other in zip(exact, rounded, strict=True):
        assert reference.features is not None
        assert other.features is not None
        assert torch.equal(reference.image, other.image)
        scale = reference.features.float().abs().amax(1, keepdim=True)
        # half a step of 127, and what float16 rounds on both sides
        assert ((reference.features.float() - other.features.float()).abs() <= scale / 200).all()


@pytest.mark.parametrize("heldout", [False, True])
def test_features_of_whole_images_train_a_student(
    heldout: bool, folder: Path, stores: dict[str, Path]
) -> None:
    given = config(folder, stores["photos"], *PHOTOS)
    model = Sami(given.sami, 16)
    for batch in batches(given, heldout):
        assert batch.features is not None
        assert batch.features.shape == (3, 4, 16)
        assert batch.features.dtype == torch.float16
        assert bool(batch.features[batch.valid].abs().amax() > 0.1)
    predicted, _ = model(batch.image, batch.sample_key)
    assert predicted.shape == batch.features.shape


@KINDS
def test_resumed_store_has_the_same_bytes(
    kind: list[str], folder: Path, stores: dict[str, Path], tmp_path: Path, efficientsam: Command
) -> None:
    store, whole = tmp_path / "store", tars(stores["photos" if kind else "views"])
    assert efficientsam("embed-teacher", *options(folder, store, *kind))[0] == 0
    assert tars(store) == whole
    (store / "train" / NAMES[1]).unlink()
    (store / "heldout" / "heldout.tar.index.json").unlink()
    code, said, _ = efficientsam("embed-teacher", *options(folder, store, *kind))
    assert code == 0
    assert tars(store) == whole
    assert "-> 3 shards (2 of them existed before)" in said[-2]
    assert "-> 1 shard of" in said[-1]


@KINDS
def test_jobs_of_an_array_write_the_same_store(
    kind: list[str], folder: Path, stores: dict[str, Path], tmp_path: Path, efficientsam: Command
) -> None:
    for index in range(2):
        array = ["--array-index", str(index), "--array-count", "2"]
        outcome = efficientsam("embed-teacher", *array, *options(folder, tmp_path / "s", *kind))
        assert outcome[0] == 0
    assert tars(tmp_path / "s") == tars(stores["photos" if kind else "views"])
    assert len(batches(config(folder, tmp_path / "s", *kind))) == 3


def test_slurm_array_is_taken_for_the_share(
    folder: Path, tmp_path: Path, efficientsam: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ID", "4"), ("COUNT", "2"), ("MIN", "3"), ("STEP", "1")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert efficientsam("embed-teacher", *options(folder, tmp_path / "s"))[0] == 0
    assert set(tars(tmp_path / "s")) == {f"train/{NAMES[1]}"}


def test_mixture_has_a_folder_a_set(folder: Path, tmp_path: Path, efficientsam: Command) -> None:
    given = options(folder, tmp_path / "s")
    given[2] = (
        f"data.mixture=[{{shards: '{folder}/shards/train-0.tar'}},"
        f"{{shards: '{folder}/shards/train-[12].tar'}}]"
    )
    assert efficientsam("embed-teacher", *given)[0] == 0
    assert set(tars(tmp_path / "s")) == {
        "train0/train-0.tar",
        "train1/train-1.tar",
        "train1/train-2.tar",
        "heldout/heldout.tar",
    }
    mixed = config(folder, tmp_path / "s")
    patterns = (f"{folder}/shards/train-0.tar", f"{folder}/shards/train-[12].tar")
    data = replace(mixed.data, train="", mixture=tuple(SetConfig(shards=p) for p in patterns))
    train, _ = stored_datasets(replace(mixed, data=data), open_splits(data))
    batch = train.collate(
        train.__getitems__([SampleRef(0, 0, 0), SampleRef(0, 0, 1), SampleRef(3, 2, 1)])
    )
    assert batch.key == ("p0", "p3", "p5")
    assert batch.valid.tolist() == [True] * 3


@pytest.mark.parametrize(
    ("numbers", "least", "most"), [("float16", 5e-5, 5e-4), ("int8", 1e-3, 8e-3)]
)
def test_measured_error_is_reported(
    numbers: str,
    least: float,
    most: float,
    folder: Path,
    tmp_path: Path,
    efficientsam: Command,
) -> None:
    given = options(folder, tmp_path / "s", f"features.numbers={numbers}")
    code, said, err = efficientsam("embed-teacher", *given)
    assert (code, err) == (0, "")
    skipped, train, heldout = said
    assert skipped.startswith("skipped p4: bad photo")
    assert train.startswith("data.train: 12 views of 6 images, 1 skipped -> 3 shards of ")
    assert heldout.startswith("data.heldout: 2 views of 2 images, 0 skipped -> 1 shard of ")
    message = re.search(rf"{numbers}: relative error (\S+), largest", train)
    assert message is not None
    assert least < float(message[1]) < most
    summary = json.loads((tmp_path / "s/train/pack-summary.json").read_text())
    assert summary["relative_error"] == pytest.approx(float(message[1]), rel=0.06)
    assert (summary["numbers"], summary["samples"]) == (numbers, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("teacher.seed=1", "teacher.seed was 0, now 1"),
        ("teacher.image_size=32", "teacher.image_size was 64, now 32"),
        ("teacher.precision=bf16", "teacher.precision was 'fp32', now 'bf16'"),
        ("teacher.output=trunk", "teacher.output was 'neck', now 'trunk'"),
        ("teacher.encoder.depth=2", "teacher.encoder.depth was 1, now 2"),
        ("sami.student.image_size=48", "sami.student.image_size was 32, now 48"),
        ("crop.min_area=0.2", "crop.min_area was 0.4, now 0.2"),
        ("features.views=3", "features.views was 2, now 3"),
        ("features.seed=6", "features.seed was 5, now 6"),
        ("features.numbers=int8", "features.numbers was 'float16', now 'int8'"),
        ("features.kind=photos features.grid=4", "features.kind was 'views', now 'photos'"),
        ("data.decoding=exact", "data.decoding was 'scaled', now 'exact'"),
    ],
    ids=lambda text: text.split()[0],
)
def test_store_of_another_kind_is_refused(
    change: str, message: str, folder: Path, stores: dict[str, Path], here: "InProcess"
) -> None:
    before = tars(stores["views"])
    given = options(folder, stores["views"], *change.split())
    line = here.mistake("embed-teacher", *given)
    assert message in line
    assert f"features.dir={stores['views']}, data.train: " in line
    other = config(folder, stores["views"], *change.split())
    with pytest.raises(UserError, match=re.escape(message)):
        stored_datasets(other, open_splits(other.data))
    assert tars(stores["views"]) == before


@pytest.mark.parametrize(
    "change",
    [
        "run.seed=3",
        "trainer.micro_batch=2",
        "data.block_shards=1",
        "loss.kind=cosine",
        "sami.mask_ratio=0.5",
    ],
)
def test_store_serves_runs_that_change_nothing_about_it(
    change: str, folder: Path, stores: dict[str, Path]
) -> None:
    other = config(folder, stores["views"], change)
    assert describe(other) == describe(config(folder, stores["views"]))
    assert len(batches(other)) == 3


def test_features_of_another_version_are_refused(
    folder: Path, stores: dict[str, Path], here: "InProcess", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efficientsam_pl.recipes.sami.feature_store.VERSION", 2)
    line = here.mistake("embed-teacher", *options(folder, stores["views"]))
    assert "version was 1, now 2" in line


def test_weights_are_distinguished_by_their_bytes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"weights")
    (tmp_path / "b.pth").write_bytes(b"weights")
    (tmp_path / "c.pth").write_bytes(b"other weights")
    message = [
        describe(config(folder, tmp_path, f"teacher.weights={tmp_path}/{name}.pth", seed))
        for name, seed in (
            ("a", "teacher.seed=0"),
            ("b", "teacher.seed=1"),
            ("c", "teacher.seed=0"),
        )
    ]
    assert message[0] == message[1]
    assert message[0]["teacher.weights (SHA-256)"] != message[2]["teacher.weights (SHA-256)"]
    assert len(message[0]["teacher.weights (SHA-256)"]) == 64


def test_images_that_changed_are_told_before_the_teacher_is_built(
    folder: Path, stores: dict[str, Path], tmp_path: Path, here: "InProcess"
) -> None:
    other = tmp_path / "shards"
    for name in (*NAMES, "heldout.tar"):
        write_shard(f"{other}/{name}", [PackedSample("p0", {"jpg": jpeg(0)})])
    line = here.mistake(
        "embed-teacher",
        *options(tmp_path, stores["views"])[2:-1],
        *("-c", f"{folder}/config.yaml"),
        f"features.dir={stores['views']}",
    )
    assert f"train/{NAMES[0]} holds features of other images than {other}/{NAMES[0]}" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["features.dir=null"], "features.views=2 has no effect without features.dir="),
        (["features={dir: null, views: 4, seed: 0}"], "features.dir= must be given"),
        (["features.dir="], "features.dir= is empty"),
        (["features.dir=/tmp/a[b"], "features.dir=/tmp/a[b: none of ,*?[{ is allowed"),
        (["data.train=''"], "data.train= must be given"),
        (["data.train=/nowhere/*.tar"], "data.train: no shard matches"),
        (["teacher.weights=/nowhere.pth"], "teacher.weights: no such file: /nowhere.pth"),
        (["teacher.kind=pixels"], "has no meaning with teacher.kind=pixels"),
        (["teacher.image_size=16", "sami.student.image_size=32"], "fewer than the student's 2"),
        ([*PHOTOS, "features.grid=3"], "features.grid=3 must divide the teacher's 4"),
        (["features.views=0"], "features.views=0 must be at least 1"),
        (["features.number=int8"], "did you mean features.numbers?"),
        (["--array-index", "1"], "--array-index and --array-count go together"),
        (["--array-index", "2", "--array-count", "2"], "--array-index 2 must lie in [0,"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_line(
    change: list[str], message: str, folder: Path, tmp_path: Path, here: "InProcess"
) -> None:
    given = [*options(folder, tmp_path / "s"), *change]
    assert message in here.mistake("embed-teacher", *given)
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_that_is_not_there_is_one_line(folder: Path, tmp_path: Path, here: "InProcess") -> None:
    given = options(folder, tmp_path / "s", "trainer.accelerator=gpu")
    assert "no GPU is available" in here.mistake("embed-teacher", *given)


def test_store_that_was_never_written_is_one_line_for_training(
    folder: Path, tmp_path: Path
) -> None:
    given = config(folder, tmp_path / "none")
    with pytest.raises(UserError, match=r"none/train holds no features; `efficientsam embed-t"):
        stored_datasets(given, open_splits(given.data))


def test_config_is_printed_without_writing(
    folder: Path, tmp_path: Path, efficientsam: Command
) -> None:
    given = options(folder, tmp_path / "s")
    code, said, _ = efficientsam("embed-teacher", "--print-config", *given)
    assert code == 0
    assert f"  dir: {tmp_path}/s" in said
    assert not (tmp_path / "s").exists()


def test_check_shards_finds_the_store_good(stores: dict[str, Path], efficientsam: Command) -> None:
    for name in ("views", "photos", "int8"):
        pattern = f"{stores[name]}/*/*.tar"
        code, said, _ = efficientsam("check-shards", pattern, "--workers", 0)
        assert (code, said[-1]) == (0, "4 shards, 8 samples, 0 bad")


def test_program_in_data_prep_is_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Path(__file__).resolve().parents[2] / "data_prep/embed_teacher.py"
    monkeypatch.setattr(sys, "argv", [str(program), "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(program), run_name="__main__")
    assert left.value.code == 0
    assert "embed-teacher" in capsys.readouterr().out


def test_killed_job_is_resumed_to_the_same_bytes(
    folder: Path, stores: dict[str, Path], tmp_path: Path, efficientsam: Command
) -> None:
    store = tmp_path / "store"
    given = options(folder, store, "data.workers=1")
    command = [sys.executable, "-m", "efficientsam_pl", "embed-teacher", *given]
    job = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    end = time.monotonic() + 100
    while time.monotonic() < end and job.poll() is None and not tars(store):
        time.sleep(0.002)
    job.kill()
    assert job.wait() == -signal.SIGKILL, "it was done before it could be killed"
    for name, data in tars(store).items():
        assert data == tars(stores["views"])[name]
    assert efficientsam("embed-teacher", *options(folder, store))[0] == 0
    assert tars(store) == tars(stores["views"])
    assert list(store.glob("**/.*.part")) == []


def test_options_come_in_any_order(folder: Path, tmp_path: Path, efficientsam: Command) -> None:
    outcome: Any = efficientsam(
        "embed-teacher",
        *options(folder, tmp_path / "s"),
        *("--array-count", "9", "--array-index", "8"),
    )
    assert outcome[0] == 0  # nothing is left for the ninth of nine
    assert tars(tmp_path / "s") == {}
