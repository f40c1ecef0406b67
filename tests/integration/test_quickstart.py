"""The quickstart through the console command, with a few steps of every stage."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from efficientsam_pl.commands.quickstart.photos import HELDOUT_PHOTOS, TRAIN_PHOTOS
from PIL import Image
from skimage import data as skimage_data

from efficientsam_pl.data.shards import open_shards

FEW_STEPS = (
    "photo_side=128",
    "regions_per_photo=6",
    "segmenter.encoder.width=48",
    "segmenter.encoder.depth=2",
    "segmenter.encoder.image_size=128",
    "segmenter.encoder.neck_channels=32",
    "segmenter.decoder.mlp_width=64",
    "pretrain.sami.student.image_size=112",
    "pretrain.teacher.image_size=112",
    "pretrain.teacher.encoder.width=48",
    "pretrain.optim.warmup_steps=1",
    "pretrain.trainer.max_steps=6",
    "pretrain.trainer.validate_every_steps=3",
    "finetune.optim.warmup_steps=1",
    "finetune.trainer.max_steps=6",
    "finetune.trainer.validate_every_steps=3",
)
PICTURES = ("loss_sami.png", "loss_finetune.png", "masks_train.png", "masks_heldout.png")


def quickstart(out: Path, *options: str) -> str:
    command = [sys.executable, "-m", "efficientsam_pl", "quickstart", "--out", str(out)]
    done = subprocess.run(
        [*command, *options, *FEW_STEPS], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warning reaches the user
    return done.stdout


def metrics(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quickstart") / "out"
    quickstart(out)
    return out


def test_every_promised_file_is_there(shipped: Path) -> None:
    for name in (*PICTURES, "predict/overlay.png", "predict/mask_0.png"):
        with Image.open(shipped / name) as picture:
            assert picture.format == "PNG"
            assert len(np.unique(np.array(picture))) > 1, f"{name} is blank"
    for name in ("report.html", "model.safetensors", "timings.json", "finetune/latest"):
        assert (shipped / name).stat().st_size > 0
    assert list(shipped.glob("*/log/events.out.tfevents.*"))
    assert len(list(shipped.glob("shards/*.tar"))) == 2


def test_metrics_hold_every_number_beside_its_baseline(shipped: Path) -> None:
    found = metrics(shipped)
    assert set(found["sami"]) == {"loss", "mean_feature_loss"}
    for side in ("train", "heldout"):
        assert set(found["finetune"][side]["box"]) == {"trained", "untrained", "filled_box"}
        assert set(found["finetune"][side]["click1"]) == {"trained", "untrained"}
        for scores in (found["finetune"][side]["box"], found["finetune"][side]["click1"]):
            assert all(0 <= value <= 1 for value in scores.values())
    assert 0 <= found["finetune"]["heldout"]["ap"] <= 1


def test_report_says_what_stands_in_for_what(shipped: Path) -> None:
    page = (shipped / "report.html").read_text()
    assert "Felzenszwalb" in page
    assert "random weights" in page
    assert page.count("data:image/png;base64,") == len(PICTURES)
    assert "http://" not in page
    assert "https://" not in page


def test_same_seed_gives_the_same_metrics_and_another_seed_does_not(
    shipped: Path, tmp_path: Path
) -> None:
    quickstart(tmp_path / "again")
    assert (tmp_path / "again/metrics.json").read_text() == (shipped / "metrics.json").read_text()
    quickstart(tmp_path / "other", "--seed", "1")
    assert metrics(tmp_path / "other") != metrics(shipped)


def test_consolidated_file_predicts_without_naming_its_model(shipped: Path, tmp_path: Path) -> None:
    photo = next((shipped / "predict").glob("[!m]*.png"))
    command = [sys.executable, "-m", "efficientsam_pl", "predict"]
    options = ["--weights", shipped / "model.safetensors", "--image", photo, "--out", tmp_path]
    done = subprocess.run(
        [*command, *map(str, options), "--point", "20,20"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "overlay.png").is_file()


def test_two_photos_of_one_scene_lie_on_the_same_side() -> None:
    motorcycles = {"motorcycle_left.png", "motorcycle_right.png"}
    assert motorcycles <= set(TRAIN_PHOTOS) or motorcycles <= set(HELDOUT_PHOTOS)
    assert not set(TRAIN_PHOTOS) & set(HELDOUT_PHOTOS)


def test_photos_of_a_folder_are_used_and_broken_ones_named(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("astronaut", "chelsea", "coffee"):
        Image.fromarray(getattr(skimage_data, name)()[::4, ::4]).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"no photo")
    told = quickstart(tmp_path / "out", "--images", str(folder))
    assert "broken.jpg" in told
    assert "2 training photos" in told
    assert sum(open_shards(str(tmp_path / "out/shards/*.tar")).sizes()) == 3


def test_coco_set_is_split_and_scored(shared: Path, tmp_path: Path) -> None:
    source = shared / "data/coco/tiny_coco"
    annotations = json.loads((source / "annotations/instances_val2017.json").read_text())
    folder = next(
        f
        for f in source.rglob("*2017")
        if f.is_dir() and (f / annotations["images"][0]["file_name"]).exists()
    )
    file = source / "annotations/instances_val2017.json"
    told = quickstart(tmp_path / "out", "--coco", str(file), str(folder))
    assert "COCO-format set" in told
    packed = open_shards(str(tmp_path / "out/shards/*.tar"))
    masked = {a["image_id"] for a in annotations["annotations"]}
    assert sum(packed.sizes()) == len(masked & {i["id"] for i in annotations["images"]})
    assert metrics(tmp_path / "out")["finetune"]["train"]["box"]["filled_box"] > 0


def test_a_folder_that_no_quickstart_made_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "shards" / "mine.tar"
    mine.parent.mkdir()
    mine.write_bytes(b"years of work")
    command = [sys.executable, "-m", "efficientsam_pl", "quickstart", "--out", str(tmp_path)]
    done = subprocess.run([*command, *FEW_STEPS], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(tmp_path) in done.stderr
    assert mine.read_bytes() == b"years of work"
