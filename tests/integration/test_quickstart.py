"""The quickstart through the console command, with a few steps of every stage."""

import html
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data as skimage_data

from efficientsam_pl.cli.main import main
from efficientsam_pl.data.shards import open_shards

FEW_STEPS = (
    "scenes=10",
    "heldout_scenes=5",
    "scene_side=96",
    "scored_train_images=3",
    "photo_side=96",
    "regions_per_photo=6",
    "segmenter.encoder.width=48",
    "segmenter.encoder.depth=2",
    "segmenter.encoder.heads=2",
    "segmenter.encoder.image_size=64",
    "segmenter.encoder.position_grid=4",
    "segmenter.encoder.neck_channels=32",
    "segmenter.decoder.mlp_width=64",
    "pretrain.sami.student.image_size=64",
    "pretrain.teacher.image_size=64",
    "pretrain.teacher.encoder.image_size=64",
    "pretrain.teacher.encoder.position_grid=4",
    "pretrain.teacher.encoder.width=48",
    "pretrain.optim.warmup_steps=1",
    "pretrain.trainer.max_steps=6",
    "pretrain.trainer.global_batch=4",
    "pretrain.trainer.micro_batch=4",
    "pretrain.trainer.validate_every_steps=3",
    "pretrain.trainer.picture_every_steps=6",
    "finetune.optim.warmup_steps=1",
    "finetune.trainer.max_steps=60",
    "finetune.trainer.global_batch=2",
    "finetune.trainer.micro_batch=2",
    "finetune.trainer.validate_every_steps=30",
    "finetune.trainer.checkpoint_every_steps=10",
)
SPLITS = ("train", "heldout", "photos")
PICTURES = ("examples", "examples_narrow", "sami_loss", "finetune_loss")


def command(out: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "efficientsam_pl", "quickstart", "--out", str(out)),
        *options,
        *FEW_STEPS,
    ]


def quickstart(out: Path, *options: str, threads: int = 1) -> str:
    done = subprocess.run(
        command(out, *options),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warning reaches the user
    return done.stdout


def metrics(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quickstart") / "out"
    quickstart(out)
    return out


def test_every_promised_file_is_there(finished: Path) -> None:
    names = [f"pictures/{name}.png" for name in PICTURES]
    names += [f"pictures/masks_{split}.png" for split in SPLITS]
    for name in (*names, "predict/overlay.png", "predict/mask_0.png"):
        with Image.open(finished / name) as picture:
            assert picture.format == "PNG"
            assert len(np.unique(np.array(picture))) > 1, f"{name} is blank"
    for name in ("report.html", "model.safetensors", "timings.json", "finetune/latest"):
        assert (finished / name).stat().st_size > 0
    assert list(finished.glob("*/log/events.out.tfevents.*"))
    assert len(list(finished.glob("shards/*.tar"))) == len(SPLITS)


def test_metrics_hold_every_number_beside_its_baselines(finished: Path) -> None:
    values = metrics(finished)
    assert set(values["sami"]) == {"loss", "mean_feature_loss"}
    assert tuple(values["finetune"]) == SPLITS
    names = {"trained", "untrained", "filled_box", "filled_box_grid", "reachable"}
    for split in SPLITS:
        scores = values["finetune"][split]
        for prompt in ("box", "click1"):
            assert set(scores[prompt]) == names
            assert all(0 <= value <= 1 for value in scores[prompt].values())
        assert scores["box"]["reachable"] >= scores["box"]["filled_box_grid"]
        assert set(scores["by_size"]) == {"small", "medium", "large"}
        for size in scores["by_size"].values():
            assert set(size["box"]) == set(size["click1"]) == names
            assert (size["masks"] == 0) == (size["box"]["filled_box"] is None)
    assert 0 <= values["finetune"]["heldout"]["ap"] <= 1


def test_mean_over_sizes_is_the_mean_over_all(finished: Path) -> None:
    scores = metrics(finished)["finetune"]["heldout"]
    sizes = [size for size in scores["by_size"].values() if size["masks"]]
    total = sum(size["box"]["trained"] * size["masks"] for size in sizes)
    mean = total / sum(size["masks"] for size in sizes)
    assert mean == pytest.approx(scores["box"]["trained"], abs=1e-9)


def test_report_says_what_its_data_are_and_refers_to_nothing_outside(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for word in ("generated scenes", "Felzenszwalb", "random weights", "reachable", "filled box"):
        assert word in page
    assert "http://" not in page
    assert "https://" not in page
    assert page.index("data:image/png") < page.index("<table>") < page.index("Stage 1")


@pytest.mark.slow
def test_same_seed_gives_the_same_metrics_on_any_number_of_threads(
    finished: Path, tmp_path: Path
) -> None:
    quickstart(tmp_path / "again", threads=2)
    assert (tmp_path / "again/metrics.json").read_text() == (finished / "metrics.json").read_text()


@pytest.mark.slow
def test_ctrl_c_leaves_a_state_that_the_same_command_continues(
    finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "stopped"
    with subprocess.Popen(
        command(out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as run:
        until = time.monotonic() + 300
        while not list(out.glob("finetune/checkpoints/step-*")) and time.monotonic() < until:
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        errors = run.communicate()[1]
    assert run.returncode == 130, errors
    [line] = errors.splitlines()
    assert "saved step" in line
    assert not (out / "metrics.json").exists()
    printed = quickstart(out)
    assert "Continuing the quickstart" in printed
    assert metrics(out) == metrics(finished)


@pytest.mark.slow
def test_every_command_of_the_report_runs_as_it_is_printed(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (finished / "report.html").read_text()
    lines = [html.unescape(line) for line in re.findall(r"<pre><code>(.*?)</code></pre>", page)]
    commands = [shlex.split(line) for line in lines]
    names = []
    for words in commands:
        arguments = words[words.index("efficientsam_pl") + 1 :] if "-m" in words else words[1:]
        names.append(arguments[0])
        if arguments[0] != "quickstart":  # on the reader's data
            assert main(arguments) == 0, arguments
    assert names == ["pretrain", "finetune", "evaluate", "predict", "everything", "quickstart"]
    again = finished / "again"
    assert (again / "pretrain/encoder.safetensors").is_file()
    scored = json.loads((again / "evaluation.json").read_text())["numbers"]
    value = metrics(finished)["finetune"]["heldout"]["box"]["trained"]
    assert scored["box"]["miou"]["all"] == pytest.approx(value, abs=1e-6)


def test_images_of_a_folder_are_used_and_broken_ones_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for name in ("astronaut", "chelsea", "coffee"):
        Image.fromarray(getattr(skimage_data, name)()[::4, ::4]).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"no photo")
    options = ["quickstart", "--out", str(out), "--images", str(folder)]
    assert main([*options, *FEW_STEPS, "finetune.trainer.max_steps=4"]) == 0
    printed = capsys.readouterr().out
    assert "broken.jpg" in printed
    assert "train: 2 photos" in printed
    assert "heldout: 1 photo " in printed
    assert sum(open_shards(str(out / "shards/*.tar")).sizes()) == 3
    assert set(metrics(out)["finetune"]) == {"train", "heldout"}
    page = (out / "report.html").read_text()
    assert "Regions are not objects" in page
    assert "Real photos" not in page


def test_coco_set_is_split_and_scored(shared: Path, tmp_path: Path) -> None:
    source = shared / "data/coco/tiny_coco"
    file = source / "annotations/instances_val2017.json"
    annotations = json.loads(file.read_text())
    folder = next(
        f
        for f in source.rglob("*2017")
        if f.is_dir() and (f / annotations["images"][0]["file_name"]).exists()
    )
    out = tmp_path / "out"
    options = ["quickstart", "--out", str(out), "--coco", str(file), str(folder)]
    assert main([*options, *FEW_STEPS, "finetune.trainer.max_steps=4"]) == 0
    packed = open_shards(str(out / "shards/*.tar"))
    masked = {a["image_id"] for a in annotations["annotations"]}
    assert sum(packed.sizes()) == len(masked & {i["id"] for i in annotations["images"]})
    assert metrics(out)["finetune"]["train"]["box"]["filled_box"] > 0
    assert "COCO-format set" in (out / "report.html").read_text()


def test_a_folder_that_no_quickstart_made_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "shards" / "mine.tar"
    mine.parent.mkdir()
    mine.write_bytes(b"years of work")
    assert main(["quickstart", "--out", str(tmp_path), *FEW_STEPS]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert str(tmp_path) in errors
    assert mine.read_bytes() == b"years of work"
