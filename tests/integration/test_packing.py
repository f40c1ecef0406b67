"""`efficientsam pack` and `check-shards` as a user meets them, killed and resumed."""

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from efficientsam_pl.cli import main as cli
from efficientsam_pl.data.schema import from_json
from efficientsam_pl.data.shards import open_shards

if TYPE_CHECKING:
    from tests.integration.conftest import InProcess

PHOTOS = 12
DATA_PREP = Path(__file__).resolve().parents[2] / "data_prep"
Command = Callable[..., tuple[int, list[str], str]]


def jpeg(image: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG")
    return data.getvalue()


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a set of twelve images with two masks each."""
    folder = tmp_path_factory.mktemp("coco set.v1")
    draw = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(PHOTOS):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 12, 3), dtype=np.uint8))
        image = np.array(coarse.resize((900, 600), Image.Resampling.BICUBIC))
        (folder / f"p{i:02d}.jpg").write_bytes(jpeg(image))
        images.append({"id": i, "file_name": f"p{i:02d}.jpg", "width": 900, "height": 600})
        for corner in (10, 300):
            square = [corner, corner, corner + 200, corner, corner + 200, 550, corner, 550]
            annotations.append({"id": len(annotations), "image_id": i, "segmentation": [square]})
    file = folder / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return ["coco", "--annotations", str(file), "--images", str(folder)]


def small_shards(out: Path, *more: object) -> list[object]:
    return ["--out", out, "--long-side", 700, "--samples-per-shard", 1, "--workers", 0, *more]


def manifest_without_times(folder: Path) -> dict[str, Any]:
    """Read a manifest; the times at which its shards were written differ from run to run."""
    loaded: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    assert all(entry.pop("times") for entry in loaded["shards"].values())
    return loaded


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


@pytest.fixture(scope="module")
def straight(coco: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of an uninterrupted run."""
    out = tmp_path_factory.mktemp("straight") / "out"
    assert cli.main(["pack", *coco, *map(str, small_shards(out))]) == 0
    return out


def started(coco: list[str], out: Path, workers: int) -> subprocess.Popen[bytes]:
    options = ["--out", out, "--long-side", 700, "--samples-per-shard", 1, "--workers", workers]
    command = [sys.executable, "-m", "efficientsam_pl", "pack", *coco, *options]
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def children(process: int) -> list[int]:
    """A process's children and theirs."""
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [one for child in map(int, listed) for one in (child, *children(child))]


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.002)
    return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of processes")
@pytest.mark.parametrize(("shards", "workers"), [(0, 1), (1, 2), (5, 0), (9, 1)])
def test_killed_packing_is_resumed_to_the_same_bytes(
    shards: int,
    workers: int,
    coco: list[str],
    straight: Path,
    tmp_path: Path,
    efficientsam: Command,
) -> None:
    out = tmp_path / "out"
    killed = started(coco, out, workers)

    def in_the_middle() -> bool:
        halves = list(out.glob(".coco-*.part"))
        return killed.poll() is not None or (len(halves) > 0 and len(tars(out)) >= shards)

    assert until(in_the_middle, 60)
    below = children(killed.pid)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL, "it was done before it could be killed"
    assert killed.stderr is not None
    killed.stderr.close()
    orphans_end = until(lambda: not any(map(is_running, below)), 3)
    for orphan in filter(is_running, below):
        os.kill(orphan, signal.SIGKILL)
    assert orphans_end
    done = tars(out)
    assert shards <= len(done) <= PHOTOS  # its workers look for it every half second
    assert all(done[name] == tars(straight)[name] for name in done)
    code, said, _ = efficientsam("pack", *coco, *small_shards(out))
    assert code == 0
    assert tars(out) == tars(straight)
    assert list(out.glob(".*.part")) == []
    assert manifest_without_times(out) == manifest_without_times(straight)
    summary = json.loads((out / "pack-summary.json").read_text())
    assert (
        len(done) - max(workers, 1) <= summary["done_before"] <= len(done)
    )  # a tar may lack its index
    assert summary["samples"] == PHOTOS
    assert f"{PHOTOS} images, 24 masks, 0 skipped -> 12 shards" in said[-1]


def test_two_jobs_of_an_array_at_once_make_one_manifest(
    coco: list[str], straight: Path, tmp_path: Path
) -> None:
    array = ["--array-count", "2", "--array-index"]
    jobs = [started([*coco, *array, str(i)], tmp_path / "out", 0) for i in range(2)]
    for job in jobs:
        _, said = job.communicate(timeout=100)
        assert (job.returncode, said) == (0, b"")
    assert tars(tmp_path / "out") == tars(straight)
    assert manifest_without_times(tmp_path / "out") == manifest_without_times(straight)
    for i in range(2):
        summary = json.loads((tmp_path / f"out/pack-summary-{i}-of-2.json").read_text())
        assert summary["array"] == {"index": i, "count": 2}
        assert (summary["samples"], summary["shards"]) == (6, 6)


def test_summary_is_true(straight: Path, coco: list[str], efficientsam: Command) -> None:
    summary = json.loads((straight / "pack-summary.json").read_text())
    assert summary["bytes"] == sum(map(len, tars(straight).values()))
    assert (summary["samples"], summary["masks"], summary["shards"]) == (12, 24, 12)
    _, said, _ = efficientsam("pack", *coco, *small_shards(straight))
    mebibytes = f"{summary['bytes'] / 2**20:.1f} MiB"
    assert said == [
        f"12 images, 24 masks, 0 skipped -> 12 shards (12 of them existed before) of {mebibytes} "
        f"in {straight}"
    ]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
def test_packed_shards_are_webdataset_shards_and_are_good(
    straight: Path, efficientsam: Command, tmp_path: Path
) -> None:
    paths = sorted(str(path) for path in straight.glob("*.tar"))
    for sample in webdataset.WebDataset(paths, shardshuffle=False):
        record = from_json(sample["json"])
        with Image.open(io.BytesIO(sample["jpg"])) as image:
            assert image.size == (record.width, record.height) == (700, 467)
        assert record.original_hw == (600, 900)
    report = tmp_path / "report.json"
    outcome = efficientsam("check-shards", f"{straight}/*.tar", "--json", report, "--workers", 2)
    assert outcome == (0, ["12 shards, 12 samples, 0 bad"], "")
    assert json.loads(report.read_text()) == {"version": 1, "shards": 12, "samples": 12, "bad": []}


def test_corrupt_set_is_exit_code_one_and_in_the_report(
    straight: Path, efficientsam: Command, tmp_path: Path
) -> None:
    for path in straight.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    truncated = tmp_path / "coco-000003.tar"
    truncated.write_bytes(truncated.read_bytes()[:5000])
    (tmp_path / "coco-000004.tar").unlink()
    report = tmp_path / "report.json"
    options = ("--json", report, "--workers", 0)
    code, said, _ = efficientsam("check-shards", f"{tmp_path}/*.tar", *options)
    assert code == 1
    assert said[-1].startswith("12 shards, 11 samples, ")
    bad = {(d["shard"], d["kind"]) for d in json.loads(report.read_text())["bad"]}
    assert (str(tmp_path / "coco-000004.tar"), "missing shard") in bad
    assert (str(truncated), "truncated shard") in bad


SLURM = "SLURM_ARRAY_TASK_"


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    for name in ("ID", "COUNT", "MIN", "MAX", "STEP"):
        monkeypatch.delenv(SLURM + name, raising=False)

    def task(**values: int) -> None:
        for name, value in values.items():
            monkeypatch.setenv(SLURM + name, str(value))

    return task


@pytest.mark.parametrize(
    "tasks",
    [
        [{"ID": i, "COUNT": 3, "MIN": 0, "MAX": 2, "STEP": 1} for i in range(3)],
        [{"ID": i, "COUNT": 2, "MIN": 10, "MAX": 15, "STEP": 5} for i in (10, 15)],
        [{"ID": 7, "COUNT": 1, "MIN": 7, "MAX": 7, "STEP": 1}],
    ],
    ids=["0-2", "10-15:5", "7"],
)
def test_tasks_of_a_slurm_array_do_all_of_it_together(
    tasks: list[dict[str, int]],
    slurm: Callable[..., None],
    coco: list[str],
    straight: Path,
    tmp_path: Path,
    efficientsam: Command,
) -> None:
    images = 0
    for task in tasks:
        slurm(**task)
        code, said, _ = efficientsam("pack", *coco, *small_shards(tmp_path / "out"))
        assert code == 0
        images += int(said[-1].split()[0])
    assert images == PHOTOS
    assert tars(tmp_path / "out") == tars(straight)


@pytest.mark.parametrize(
    "task",
    [{"ID": 7, "COUNT": 3, "MIN": 1, "MAX": 7, "STEP": 1}, {"ID": 2}, {"ID": 3, "STEP": 0}],
    ids=["1,3,7", "alone", "step"],
)
def test_slurm_array_that_makes_no_shares_is_a_mistake(
    task: dict[str, int],
    slurm: Callable[..., None],
    coco: list[str],
    tmp_path: Path,
    here: "InProcess",
    efficientsam: Command,
) -> None:
    slurm(**task)
    line = here.mistake("pack", *coco, *small_shards(tmp_path / "out"))
    assert "SLURM" in line
    assert "--array-index" in line
    array = ("--array-index", 1, "--array-count", 12)  # given ones are taken instead
    assert efficientsam("pack", *coco, *small_shards(tmp_path / "out", *array))[0] == 0


def test_mistakes_are_told_in_one_line_that_names_the_thing(
    coco: list[str], straight: Path, tmp_path: Path, here: "InProcess"
) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "bad.json").write_text("{}")
    with tarfile.open(tmp_path / "sa_1.tar", "w"):
        pass
    sa1b = ["sa1b", "--source", f"{tmp_path}/sa_*.tar"]
    out = ["--out", tmp_path / "out"]
    bad = ["coco", "--annotations", tmp_path / "bad.json", "--images", tmp_path]
    for arguments, message in (
        ([*coco, *out, "--array-index", 3, "--array-count", 3], "--array-index 3"),
        ([*coco, *out, "--array-index", 3], "--array-index and --array-count go together"),
        ([*coco, "--out", straight], "long_side was 700, now None"),
        ([*coco, "--out", tmp_path / "file"], str(tmp_path / "file")),
        ([*coco, "--out", tmp_path / "file/below"], str(tmp_path / "file")),
        ([*sa1b, "--out", tmp_path], str(tmp_path)),
        ([*sa1b, *out], "nothing could be packed"),
        (["sa1b", "--source", f"{tmp_path}/gone*.tar", *out], "gone*.tar"),
        (["imagenet", "--source", tmp_path / "gone", *out], str(tmp_path / "gone")),
        ([*bad, *out], "bad.json is no COCO annotation file"),
        (["coco", "--annotations", "gone.json", "--images", tmp_path, *out], "gone.json"),
        ([*coco, "--out", "nowhere://bucket/out"], "nowhere://bucket/out"),
        ([*coco, *out, "--long-side", 0], "--long-side"),
    ):
        assert message in here.mistake("pack", *arguments, "--workers", 0)
    assert "gone" in here.mistake("check-shards", f"{tmp_path}/gone/*.tar")


def test_what_is_skipped_is_reported_and_lies_in_the_summary(
    tmp_path: Path, efficientsam: Command
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/good.jpg").write_bytes(jpeg(np.zeros((8, 8, 3), dtype=np.uint8)))
    for i in range(25):
        (tmp_path / f"in/bad{i:02d}.jpg").write_bytes(b"no photo")
    pack = ["pack", "imagenet", "--source", tmp_path / "in", "--out", tmp_path / "out"]
    for _ in range(2):  # resumed, the same is reported
        code, said, _ = efficientsam(*pack, "--workers", 0)
        assert code == 0
        assert sum(line.startswith("skipped bad") for line in said) == 20
        assert f"... and 5 more, see {tmp_path}/out/pack-summary.json" in said
        assert said[-1].startswith("1 image, 0 masks, 25 skipped -> 1 shard ")
        skipped = json.loads((tmp_path / "out/pack-summary.json").read_text())["skipped"]
        assert {one["what"] for one in skipped} == {f"bad{i:02d}" for i in range(25)}


def test_real_set_is_packed_and_checked(
    shared: Path, tmp_path: Path, efficientsam: Command
) -> None:
    source = shared / "data/coco/tiny_coco"
    annotations = source / "annotations/instances_val2017.json"
    images = source / "images/val2017"
    options = ["--annotations", annotations, "--images", images, "--long-side", 320]
    out = ["--out", tmp_path / "out", "--workers", 0]
    code, said, _ = efficientsam("pack", "coco", *options, *out)
    assert code == 0
    assert said[-1].startswith("6 images, 136 masks (1 of crowds), 0 skipped -> 1 shard ")
    assert len(open_shards(f"{tmp_path}/out/*.tar")) == 6
    assert efficientsam("check-shards", f"{tmp_path}/out/*.tar", "--workers", 0)[0] == 0


@pytest.mark.parametrize(
    "name", ["pack_coco", "pack_sa1b", "pack_imagenet", "pack_ade20k", "check_shards"]
)
def test_script_in_data_prep_is_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(DATA_PREP / f"{name}.py"), run_name="__main__")
    assert left.value.code == 0
    command = name.replace("pack_", "pack ").replace("check_", "check-")
    assert f"usage: efficientsam {command} " in capsys.readouterr().out
