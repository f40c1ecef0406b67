"""`evaluate shards=`: scores of packed shards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from efficientsam_pl.data.datasets.image_sources import LoadedImage, PackedImages
from efficientsam_pl.data.packing.images import MaskedImage, pack_images
from efficientsam_pl.data.schema import annotation_of
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.evaluation.config import ValidationConfig
from efficientsam_pl.evaluation.evaluator import validation_evaluator
from efficientsam_pl.evaluation.prompt_metrics import ImageScores
from efficientsam_pl.inference.evaluator_adapter import EvaluatorModel
from efficientsam_pl.inference.hub import load_model
from efficientsam_pl.rle import encode

if TYPE_CHECKING:
    from tests.integration.conftest import InProcess, TinyModel
    from tests.integration.evaluate.conftest import DiscSet


HEIGHT, WIDTH = 48, 64  # of the photos in the shards


def test_evaluation_counts_and_scores_every_mask(
    tiny: "TinyModel", shards: Path, tmp_path: Path, here: "InProcess"
) -> None:
    out = tmp_path / "deep/scores.json"
    told = here.done(
        "evaluate",
        f"model.name={tiny.model}",
        f"model.weights={tiny.weights}",
        f"shards={shards}/*.tar",
        f"out={out}",
        "accelerator=cpu",
    )
    scores = json.loads(out.read_text())
    assert (scores["counts"]["photos"], scores["counts"]["instances"]) == (3, 6)
    [damage] = scores["damaged"]
    assert damage["photo"] == "set-999999.tar"
    assert "3 photos, 6 instances" in told
    assert "1 damaged" in told
    for name in ("box", "click_random_1", "click_random_3"):
        assert 0 <= scores["numbers"][name]["miou"]["all"] <= 1
    # the rectangles fill their boxes; what is left of the photo fills its box in part
    rest = [1 - (15 + i) * 32 / (HEIGHT * WIDTH) for i in range(3)]
    filled = scores["numbers"]["box"]["filled_box_miou"]["all"]
    assert filled == pytest.approx((3 + sum(rest)) / 6, abs=1e-6)
    assert {"torch", "efficientsam_pl"} <= set(scores["versions"])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["shards=/nowhere/*.tar"], "/nowhere/*.tar"),
        ([], "shards="),
        (["model.weights=null", "shards=a"], "model.weights="),
        (["model.weights=gone.pt", "shards={shards}/*.tar"], "gone.pt"),
        (["model.name=sam_vit_z", "shards={shards}/*.tar"], "sam_vit_z"),
    ],
)
def test_evaluation_that_cannot_be_made_names_the_reason(
    overrides: list[str],
    named: str,
    tiny: "TinyModel",
    shards: Path,
    tmp_path: Path,
    here: "InProcess",
) -> None:
    given = [f"model.name={tiny.model}", f"model.weights={tiny.weights}"]
    rest = [override.format(shards=shards) for override in overrides]
    assert named in here.mistake("evaluate", *given, *rest, folder=tmp_path)


def test_crowds_and_empty_masks_in_shards_are_counted(
    discs: "DiscSet", tmp_path: Path, run: Callable[..., str]
) -> None:
    square = np.zeros((HEIGHT, WIDTH), dtype=bool)
    square[5:20, 5:20] = True
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    annotation = annotation_of(encode(square))
    annotations = (
        annotation,
        annotation._replace(crowd=True),
        annotation_of(encode(np.zeros_like(square))),
    )
    pack_images([MaskedImage(f"p{n}", pixels, annotations) for n in range(2)], tmp_path, "set")
    model = [
        f"model.name={discs.folder}/tiny.yaml",
        f"model.weights={discs.folder}/tiny.safetensors",
    ]
    out = f"out={tmp_path}/a.json"
    said = run(["evaluate", *model, f"shards={tmp_path}/*.tar", out, "protocols=[box]"])
    assert "2 photos, 2 instances (2 crowds and 2 empty ones skipped)" in said
    counts = discs.numbers(tmp_path / "a.json")["counts"]
    assert (counts["skipped_crowds"], counts["skipped_empty"]) == (2, 2)


def test_shards_score_what_training_logs_of_them(
    discs: "DiscSet", tmp_path: Path, run: Callable[..., str]
) -> None:
    run([
        "pack", "coco", "--annotations", f"{discs.folder}/set.json",
        "--images", f"{discs.folder}/photos", "--out", f"{tmp_path}/shards",
        "--samples-per-shard", "4", "--workers", "0",
    ])  # fmt: skip
    model = [
        f"model.name={discs.folder}/tiny.yaml",
        f"model.weights={discs.folder}/tiny.safetensors",
    ]
    shown = run(["evaluate", *model, f"shards={tmp_path}/shards/*.tar", f"out={tmp_path}/a.json"])
    told = discs.numbers(tmp_path / "a.json")
    segmenter = load_model(f"{discs.folder}/tiny.yaml", f"{discs.folder}/tiny.safetensors")
    images, validation = PackedImages(open_shards(f"{tmp_path}/shards/*.tar")), ValidationConfig()
    evaluator = validation_evaluator(EvaluatorModel(segmenter), validation, 0)
    scores = ImageScores(validation)
    for place in images.numbers:
        read = images.read(place)
        if isinstance(read, LoadedImage):
            scores.add(evaluator.evaluate(place, read.image, read.about), read.about)
    logged = scores.compute()
    box = told["numbers"]["box"]
    assert box["miou"]["all"] == pytest.approx(logged.box, rel=0, abs=1e-9)
    assert box["filled_box_miou"]["all"] == pytest.approx(logged.filled_box, rel=0, abs=1e-9)
    assert box["filled_box_grid_miou"]["all"] == pytest.approx(logged.filled_box_grid)
    assert box["reachable_miou"]["all"] == pytest.approx(logged.reachable)
    for count, miou in logged.clicks.items():
        evaluated = told["numbers"][f"click_random_{count}"]["miou"]["all"]
        assert evaluated == pytest.approx(miou, rel=0, abs=1e-9)
    for size, own in logged.by_size.items():
        assert told["counts"][f"{size}_instances"] == own.masks
        expected = pytest.approx(own.reachable) if own.masks else None
        assert box["reachable_miou"][size] == expected
    assert f"{logged.reachable:.3f}" in shown
    assert "filled box via mask grid" in shown
    assert box["ap"] == pytest.approx(logged.ap._asdict(), rel=0, abs=1e-9)
    assert told["counts"]["skipped_crowds"] == 1
    assert set(told["numbers"]) == {"box", "click_random_1", "click_random_3"}
