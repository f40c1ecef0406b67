"""Classification from folders of images to predicted classes, through the commands."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam_pl.commands.classification import evaluate as scoring
from efficientsam_pl.data.images.files import read_image
from efficientsam_pl.evaluation.results.class_record import class_record
from efficientsam_pl.inference.classifier import classify, load_classifier
from tests.recipes.classification.conftest import TINY

if TYPE_CHECKING:
    from tests.integration.conftest import InProcess

CLASSES = ("blue", "green", "red")
COUNTS = {"train": 8, "val": 5}  # images a class


def _images(folder: Path, classes: tuple[str, ...], count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = draw.integers(0, 60, (40, 48, 3), dtype=np.uint8)
            image[..., ("red", "green", "blue").index(name)] += 150
            Image.fromarray(image).save(folder / name / f"{name}{number}.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of images packed into shards, a run of 30 steps, and its file."""
    from efficientsam_pl.cli import main as cli

    home = tmp_path_factory.mktemp("classification")
    for seed, (name, count) in enumerate(COUNTS.items()):
        _images(home / "photos" / name, CLASSES, count, seed)
        source = ("--source", f"{home}/photos/{name}", "--out", f"{home}/{name}")
        assert cli.main(["pack", "imagenet", *source]) == 0
    (home / "tiny.yaml").write_text(json.dumps(TINY))
    run = (
        *("-c", "downstream/classify_ti", "-c", f"{home}/tiny.yaml", f"run.dir={home}/run"),
        *(f"data.train={home}/train/*.tar", f"data.heldout={home}/val/*.tar"),
        *("trainer.max_steps=30", "trainer.validate_every_steps=30", "mix.probability=0.5"),
        *("trainer.checkpoint_every_steps=30", "augment.rand_augment=null"),
    )
    assert cli.main(["classify", *run]) == 0
    assert cli.main(["consolidate", f"{home}/run", f"{home}/model.safetensors"]) == 0
    return home


def evaluate(home: Path, out: Path, *more: str) -> list[str]:
    return [
        *("evaluate", f"model.weights={home}/model.safetensors", f"shards={home}/val/*.tar"),
        *(f"out={out}", "accelerator=cpu", *more),
    ]


def numbers(file: Path) -> dict[str, Any]:
    """Return all of a result that may not depend on who computed it, when and how."""
    result: dict[str, Any] = json.loads(file.read_text())
    assert result.pop("run")
    return result


def test_a_classifier_is_scored_and_compared(home: Path, here: "InProcess", tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    printed = here.done(*evaluate(home, out))
    result = numbers(out)
    scores = result["numbers"]["classification"]
    assert scores["accuracy"]["top1"] > 0.9
    assert scores["accuracy"]["top5"] == 1
    assert f"15 photos, 0 damaged: top-1 {scores['accuracy']['top1']:.4f}" in printed
    assert scores["top1_by_class"].keys() == set(CLASSES)
    assert result["counts"] == {"photos": 15, "damaged_photos": 0, "classes_without_photos": 0}
    assert result["data"]["kind"] == "classes"
    assert len(result["data"]["images_sha256"]) == 64
    table = here.done("compare", str(out))
    assert "classes top-1" in table
    assert "it is of 1000 classes, ours of 3" in " ".join(table.split())


def test_the_paper_stands_beside_results_of_a_thousand_classes(
    home: Path, here: "InProcess", tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    here.done(*evaluate(home, out))
    result = json.loads(out.read_text())
    result["protocols"]["classification"]["classes"] = 1000
    out.write_text(json.dumps(result))
    table = here.done("compare", str(out))
    for row in (
        "MAE-Ti 75.2",
        "SAMI-Ti 76.8",
        "MAE-S 81.5",
        "SAMI-S 82.7",
        "MAE-B 83.6",
        "SAMI-B 84.8",
    ):
        assert row in " ".join(table.split())


def test_two_ranks_and_a_resumed_evaluation_give_the_same_result(
    home: Path, here: "InProcess", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_BATCH", 4)
    whole, shared = tmp_path / "whole.json", tmp_path / "shared.json"
    here.done(*evaluate(home, whole))
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        here.done(*evaluate(home, shared))
        assert shared.exists() == (rank == "0")
    assert numbers(whole) == numbers(shared)
    lines = [
        class_record(f"{line}\n")
        for file in sorted((tmp_path / "shared.parts").glob("rank-*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert sorted(record.photo for record in lines) == list(range(15))
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID", "RANK"):
        monkeypatch.delenv(name)
    kept = tmp_path / "shared.parts/rank-0.jsonl"
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:3]))
    here.done(*evaluate(home, shared))
    assert numbers(whole) == numbers(shared)


def test_predict_prints_and_draws_the_most_probable_classes(
    home: Path, here: "InProcess", tmp_path: Path
) -> None:
    image, weights = home / "photos/val/red/red0.png", home / "model.safetensors"
    printed = here.done(
        "predict", "--weights", weights, "--image", image, "--out", tmp_path / "out"
    )
    classes = classify(load_classifier(str(weights)), read_image(image))
    lines = [f"{n}. {c.name}: {100 * c.probability:.1f} %" for n, c in enumerate(classes, 1)]
    assert printed.splitlines()[:3] == lines
    assert classes[0].name == "red"
    assert sum(c.probability for c in classes) == pytest.approx(1, abs=1e-5)
    with Image.open(tmp_path / "out/classes.png") as card:
        assert card.width > 300


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["protocols=box"], ["write protocols=[box]"]),
        (["protocols=[box]"], ["protocols=[box]", "no effect with a classifier"]),
        (["seed=3"], ["seed=3", "no effect with a classifier"]),
        (["model.name=efficient_sam_ti"], ["model.name=efficient_sam_ti", "no effect"]),
        (["plots=true"], ["plots=true"]),
    ],
)
def test_keys_of_masks_have_no_effect_with_a_classifier(
    keys: list[str], named: list[str], home: Path, here: "InProcess", tmp_path: Path
) -> None:
    line = here.mistake(*evaluate(home, tmp_path / "result.json", *keys))
    assert all(word in line for word in named)


def test_a_prompt_has_no_meaning_for_a_classifier(home: Path, here: "InProcess") -> None:
    line = here.mistake(
        *("predict", "--weights", home / "model.safetensors", "--out", home / "out"),
        *("--image", home / "photos/val/red/red0.png", "--point", "1,2"),
    )
    assert "--point has no effect" in line


def pack(here: "InProcess", folder: Path, classes: tuple[str, ...]) -> Path:
    _images(folder / "photos", classes, 2, 9)
    here.done("pack", "imagenet", "--source", folder / "photos", "--out", folder / "shards")
    return folder / "shards"


def train(home: Path, folder: Path, *more: str) -> list[str]:
    return [
        *("classify", "-c", f"{home}/tiny.yaml", f"data.train={home}/train/*.tar"),
        *(f"run.dir={folder}", "trainer.max_steps=2", *more),
    ]


def test_sets_that_number_other_classes_are_refused(
    home: Path, here: "InProcess", tmp_path: Path
) -> None:
    other = pack(here, tmp_path, ("green", "red"))
    line = here.mistake(*train(home, tmp_path / "run", f"data.heldout={other}/*.tar"))
    assert "data.heldout: its shards number other classes" in line
    assert "class 0 is green, there blue" in line
    scored = evaluate(home, tmp_path / "result.json", f"shards={other}/*.tar")
    line = here.mistake(*(word for word in scored if not word.startswith(f"shards={home}")))
    assert "the 2 classes of" in line
    assert "are not the 3 of" in line


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["model.classes=4"], ["model.classes=4", "lists 3 classes"]),
        (["labels.names={home}/two.txt"], ["names 2 classes", "packed with 3"]),
        (["labels.names={home}/gone.txt"], ["labels.names", "gone.txt"]),
        (["model.encoder=gone.pt"], ["model.encoder", "gone.pt"]),
        (["model.vit.kind=sam_vit"], ["vit.kind=sam_vit", "plain vit"]),
        (["trainer.micro_batch=1"], ["trainer.micro_batch=1", "mix.group=2", "multiple"]),
        (["mix.group=1"], ["group=1 must be at least 2"]),
        (["data.neighbours=8"], ["mix.group=2", "data.neighbours=8"]),
        (["optim.min_lr=1"], ["min_lr=1"]),
        (["augment.rand_augment=magic"], ["rand_augment=magic"]),
        (["model.vit.neck_channels=9"], ["neck_channels=9", "no neck"]),
    ],
)
def test_a_wrong_config_is_one_line(
    keys: list[str], named: list[str], home: Path, here: "InProcess", tmp_path: Path
) -> None:
    (home / "two.txt").write_text("cat\ndog\n")
    line = here.mistake(*train(home, tmp_path / "run", *(key.format(home=home) for key in keys)))
    assert all(word in line for word in named), line


def test_a_head_of_another_number_of_classes_is_one_line(
    home: Path, here: "InProcess", tmp_path: Path
) -> None:
    other = pack(here, tmp_path, ("green", "red"))
    given = train(home, tmp_path / "run", f"model.weights={home}/model.safetensors")
    given = [word for word in given if not word.startswith("data.train")]
    line = here.mistake(
        *given, f"data.train={other}/*.tar", "trainer.global_batch=2", "trainer.micro_batch=2"
    )
    assert "has a head of 3 classes, model.classes is 2; model.encoder=" in line


def test_a_class_without_images_is_scored_as_absent(
    home: Path, here: "InProcess", tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    _images(folder, ("green", "red"), 3, 4)
    (folder / "blue").mkdir()
    here.done("pack", "imagenet", "--source", folder, "--out", tmp_path / "shards")
    out = tmp_path / "result.json"
    scored = evaluate(home, out, f"shards={tmp_path}/shards/*.tar")
    here.done(*(word for word in scored if not word.startswith(f"shards={home}")))
    result = numbers(out)
    assert result["counts"]["classes_without_photos"] == 1
    assert result["numbers"]["classification"]["top1_by_class"].keys() == {"green", "red"}


def test_evaluated_images_that_change_are_noticed(
    home: Path, here: "InProcess", tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    here.done(*evaluate(home, out))
    records = tmp_path / "result.parts/rank-0.jsonl"
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    lines[0]["sha256"] = "0" * 16
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "1 image changed" in here.mistake(*evaluate(home, out))
    here.done(*evaluate(home, out, "fresh=true"))
    assert torch.isfinite(
        torch.tensor(numbers(out)["numbers"]["classification"]["accuracy"]["top1"])
    )
