"""evaluate, compare and predict of a semantic segmenter, through the commands."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from efficientsam_pl.config.load import as_dict
from efficientsam_pl.evaluation.results.semantic_record import semantic_record
from efficientsam_pl.inference.semantic import load_semantic, segment_image
from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.semantic.config import MaskHeadConfig, SemanticConfig
from efficientsam_pl.models.semantic.mask2former import SemanticSegmenter
from efficientsam_pl.models.weights import safetensors_header

if TYPE_CHECKING:
    from tests.integration.conftest import InProcess

NAMES = ("sky", "road", "car", "kite")
HEAD = MaskHeadConfig(width=32, heads=2, queries=6, pixel_layers=1, pixel_ffn=16, layers=1, ffn=16)


def write_model(path: Path, names: tuple[str, ...] = NAMES) -> None:
    torch.manual_seed(5)
    vit = EncoderConfig(width=32, depth=1, heads=2, image_size=32)
    shape = SemanticConfig(vit=vit, classes=len(names), labels=names, head=HEAD, feature_channels=8)
    model = SemanticSegmenter(shape)
    with torch.no_grad():  # else one class wins everywhere
        model.head.predictor.class_embed.weight.mul_(100)
        model.head.pixel_decoder.mask_features.weight.mul_(30)
    header = safetensors_header(as_dict(shape), {"stage": "semantic"})
    save_file(model.state_dict(), path, metadata=header)


def write_pair(folder: Path, name: str, labels: np.ndarray) -> None:
    draw = np.random.default_rng(len(name) + ord(name[0]))
    pixels = Image.fromarray(draw.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    size = labels.shape[::-1]
    pixels.resize(size, Image.Resampling.BICUBIC).save(folder / f"images/{name}.jpg", quality=95)
    Image.fromarray(labels).save(folder / f"labels/{name}.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a packed set: five images of three of four classes, one wholly ignored."""
    from efficientsam_pl.cli import main as cli

    home = tmp_path_factory.mktemp("semantic")
    write_model(home / "model.safetensors")
    draw = np.random.default_rng(1)
    for name in "abcd":
        coarse = draw.choice([0, 1, 2, 255], (4, 5)).astype(np.uint8)
        write_pair(home / "set", name, np.repeat(np.repeat(coarse, 10, 0), 9, 1))
    write_pair(home / "set", "e", np.full((33, 50), 255, np.uint8))
    (home / "classes.txt").write_text("\n".join(NAMES))
    pack(home, home / "set", home / "classes.txt", cli.main)
    return home


def pack(home: Path, folder: Path, classes: Path, main: Any) -> None:
    pair = ["--images", f"{folder}/images", "--labels", f"{folder}/labels"]
    out = ["--classes", str(classes), "--out", f"{folder}/shards", "--workers", "0"]
    assert main(["pack", "ade20k", *pair, *out]) == 0


def evaluate(home: Path, out: Path, *more: str) -> list[str]:
    return [
        *("evaluate", f"model.weights={home}/model.safetensors", "accelerator=cpu"),
        *(f"shards={home}/set/shards/*.tar", f"out={out}", *more),
    ]


def numbers(file: Path) -> dict[str, Any]:
    """Return all of a result that may not depend on who computed it, when and how."""
    result: dict[str, Any] = json.loads(file.read_text())
    assert result.pop("run")
    return result


def test_scores_are_those_of_a_plain_count(home: Path, here: "InProcess", tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    printed = here.done(*evaluate(home, out))
    model = load_semantic(str(home / "model.safetensors"))
    hits, union, found = np.zeros(4), np.zeros(4), np.zeros(4)
    for file in sorted((home / "set/images").iterdir()):
        predicted = segment_image(model, np.array(Image.open(file))).labels.numpy()
        truth = np.array(Image.open(home / f"set/labels/{file.stem}.png"))
        for number in range(4):
            ours, theirs = (predicted == number) & (truth != 255), truth == number
            hits[number] += (ours & theirs).sum()
            union[number] += (ours | theirs).sum()
            found[number] += theirs.sum()
    result = numbers(out)
    scores = result["numbers"]["semantic"]
    expected = {NAMES[n]: hits[n] / union[n] for n in range(4) if found[n]}
    assert scores["iou_by_class"] == pytest.approx(expected, abs=1e-9)
    assert scores["miou"]["all"] == pytest.approx(np.mean(list(expected.values())), abs=1e-9)
    assert 0 < scores["miou"]["all"] < 1
    assert scores["pixel_accuracy"] == pytest.approx(hits.sum() / found.sum(), abs=1e-9)
    assert result["counts"] == {
        "photos": 5, "damaged_photos": 0, "ignored_photos": 1, "classes_without_photos": 1,
    }  # fmt: skip
    assert f"5 photos, 0 damaged: mIoU {scores['miou']['all']:.4f}" in printed
    table = here.done("compare", str(out))
    assert "label maps mIoU" in table
    assert "it is of 150 classes, ours of 4" in " ".join(table.split())


def test_two_ranks_and_a_resumed_evaluation_give_the_same_result(
    home: Path, here: "InProcess", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, shared = tmp_path / "whole.json", tmp_path / "shared.json"
    here.done(*evaluate(home, whole))
    with monkeypatch.context() as ranks:
        for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}.items():
            ranks.setenv(name, value)
        ranks.setenv("TORCHELASTIC_RUN_ID", "test")
        for rank in ("1", "0"):
            ranks.setenv("RANK", rank)
            ranks.setenv("LOCAL_RANK", rank)
            here.done(*evaluate(home, shared))
            assert shared.exists() == (rank == "0")
    assert numbers(whole) == numbers(shared)
    journals = sorted((tmp_path / "shared.parts").glob("rank-*.jsonl"))
    lines = [line for file in journals for line in file.read_text().splitlines(keepends=True)]
    assert sorted(semantic_record(line).photo for line in lines) == list(range(5))
    journals[0].write_text(lines[0][:-9])  # torn by a kill
    here.done(*evaluate(home, shared))
    assert numbers(whole) == numbers(shared)


def test_damaged_images_are_counted_and_named(
    home: Path, here: "InProcess", tmp_path: Path, tar_of: Any
) -> None:
    files = {}
    for name, labels in (("good", "a"), ("size", "e"), ("beyond", "a")):
        files[f"{name}.jpg"] = (home / "set/images/a.jpg").read_bytes()
        files[f"{name}.label.png"] = (home / f"set/labels/{labels}.png").read_bytes()
    Image.fromarray(np.full((40, 45), 4, np.uint8)).save(tmp_path / "4.png")
    files["beyond.label.png"] = (tmp_path / "4.png").read_bytes()
    tar_of(tmp_path / "x.tar", files)
    out = tmp_path / "result.json"
    here.done(*evaluate(home, out)[:-2], f"shards={tmp_path}/x.tar", f"out={out}")
    kinds = {entry["photo"].split()[-1]: entry["kind"] for entry in numbers(out)["damaged"]}
    assert kinds == {"size": "size mismatch", "beyond": "unknown class"}
    assert numbers(out)["counts"]["photos"] == 1


def test_predict_writes_class_numbers_and_a_picture(
    home: Path, here: "InProcess", tmp_path: Path
) -> None:
    weights, image = home / "model.safetensors", home / "set/images/b.jpg"
    printed = here.done("predict", "--weights", weights, "--image", image, "--out", tmp_path / "o")
    labels = np.array(Image.open(tmp_path / "o/labels.png"))
    found = segment_image(load_semantic(str(weights)), np.array(Image.open(image))).labels.numpy()
    assert np.array_equal(labels, found)
    share, name = printed.splitlines()[0].split(" %  ")
    assert float(share) == pytest.approx(100 * (labels == NAMES.index(name)).mean(), abs=0.06)
    with Image.open(tmp_path / "o/classes.png") as card:
        assert card.width > 640


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["protocols=[box]"], ["protocols=[box]", "no effect with a semantic segmenter"]),
        (["seed=3"], ["seed=3", "no effect with a semantic segmenter"]),
        (["model.name=efficient_sam_ti"], ["model.name=efficient_sam_ti", "no effect"]),
        (["exif_orientation=ignore"], ["exif_orientation=ignore", "no effect"]),
        (["plots=true"], ["plots=true"]),
    ],
)
def test_keys_of_masks_have_no_effect_with_a_segmenter_of_classes(
    keys: list[str], named: list[str], home: Path, here: "InProcess", tmp_path: Path
) -> None:
    line = here.mistake(*evaluate(home, tmp_path / "result.json", *keys))
    assert all(word in line for word in named)


def test_sets_of_other_classes_are_refused(home: Path, here: "InProcess", tmp_path: Path) -> None:
    from efficientsam_pl.cli import main as cli

    write_pair(tmp_path, "a", np.ones((40, 45), np.uint8))
    for names, why in (
        (("sky", "road", "car", "boat"), "such as boat"),
        (("road", "sky", "car", "kite"), "in another order"),
    ):
        (tmp_path / "c.txt").write_text("\n".join(names))
        folder = tmp_path / names[0]
        folder.mkdir()
        for kind in ("images", "labels"):
            (folder / kind).symlink_to(tmp_path / kind)
        pack(home, folder, tmp_path / "c.txt", cli.main)
        line = here.mistake(
            *evaluate(home, tmp_path / "r.json")[:-2],
            *(f"shards={folder}/shards/*.tar", f"out={tmp_path}/r.json"),
        )
        assert f"the 4 classes of {folder}/shards/*.tar are not the 4 of" in line
        assert why in line
