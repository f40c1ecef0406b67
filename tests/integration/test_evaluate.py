"""`evaluate` and `compare` as users run them: on one rank and several, killed and gone on with."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from efficientsam_pl.cli import main as cli
from efficientsam_pl.commands.evaluate.command import evaluate
from efficientsam_pl.data.datasets.image_sources import LoadedImage, PackedImages
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.evaluation.config import ValidationConfig
from efficientsam_pl.evaluation.evaluator import validation_evaluator
from efficientsam_pl.evaluation.interfaces import PromptableModel
from efficientsam_pl.evaluation.prompt_metrics import ImageScores
from efficientsam_pl.export.consolidate import write_safetensors
from efficientsam_pl.inference.evaluator_adapter import EvaluatorModel
from efficientsam_pl.inference.hub import load_model
from efficientsam_pl.inference.load import load_segmenter
from efficientsam_pl.inference.predictor import SamPredictor
from efficientsam_pl.recipes import root_configs as configs
from efficientsam_pl.rle import encode

ROOT = Path(__file__).resolve().parents[2]
PHOTOS, HEIGHT, WIDTH = 7, 48, 60
MODEL = """\
encoder: {width: 24, depth: 1, heads: 3, image_size: 64, position_grid: 4, neck_channels: 32}
decoder: {mlp_width: 32, iou_head_width: 32}
prompts: {negative_clicks: true, mask_prompts: true, min_points: 6, max_points: 12}
"""
PROTOCOLS = "protocols=[box,click_center,click_random_1,click_random_3,click_iterative_3]"
# The command with every photo taking its time, so that it can be killed amid them
SLOW = """\
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from efficientsam_pl.evaluation.evaluator import Examination
quick = Examination.record
def slow(*given, **named):
    time.sleep(0.4)
    return quick(*given, **named)
Examination.record = slow
from efficientsam_pl.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Set:
    """Photos with discs, a detector's boxes, a model."""

    folder: Path

    def arguments(self, *more: str) -> list[str]:
        f = self.folder
        given = {arg.partition("=")[0] for arg in more}
        standard = [
            f"annotations={f}/set.json", f"images={f}/photos", f"detector.results={f}/boxes.json",
            "kind=coco", "accelerator=cpu", PROTOCOLS, "detector.second_pass=true",
        ]  # fmt: skip
        if "baseline" not in given:
            standard += [f"model.name={f}/tiny.yaml", f"model.weights={f}/tiny.safetensors"]
        return ["evaluate", *(a for a in standard if a.partition("=")[0] not in given), *more]


def annotation(number: int, image: int, category: int, mask: Any, **more: Any) -> dict[str, Any]:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = [0, 0, 0, 0]
    if len(rows):
        sides = [columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        box = [int(one) for one in (columns[0], rows[0], *sides)]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": encode(mask),
        "bbox": box,
        "area": int(mask.sum()),
        "iscrowd": 0,
    } | more


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Set:
    folder = tmp_path_factory.mktemp("discs")
    (folder / "photos").mkdir()
    draw = np.random.default_rng(5)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    listed: dict[str, list[Any]] = {
        "images": [], "annotations": [], "categories": [{"id": c, "name": f"c{c}"} for c in (3, 8)],
    }  # fmt: skip
    for image in range(40, 40 + PHOTOS):
        small = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        small.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR).save(
            folder / "photos" / f"{image}.jpg", quality=95
        )
        listed["images"].append(
            {"id": image, "file_name": f"{image}.jpg", "height": HEIGHT, "width": WIDTH}
        )
        for _ in range(1 + image % 3):
            centre, radius = draw.integers(8, 40, 2), draw.integers(3, 12)
            mask = np.hypot(y - centre[0], x - centre[1]) < radius
            number = 100 + len(listed["annotations"])
            listed["annotations"].append(annotation(number, image, 3 + 5 * (number % 2), mask))
    everywhere, nowhere = np.ones((HEIGHT, WIDTH), bool), np.zeros((HEIGHT, WIDTH), bool)
    listed["annotations"] += [
        annotation(900, 41, 3, everywhere, iscrowd=1),
        annotation(901, 42, 8, nowhere),
    ]
    boxes = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"],
         "score": float(draw.random())}
        for a in listed["annotations"] if a["id"] < 900
    ]  # fmt: skip
    (folder / "set.json").write_text(json.dumps(listed))
    (folder / "boxes.json").write_text(json.dumps(boxes))
    (folder / "tiny.yaml").write_text(MODEL)
    shape = configs.segmenter_config(str(folder / "tiny.yaml"))
    for seed, name in enumerate(("tiny", "other")):
        torch.manual_seed(seed)
        state = load_segmenter(shape, None).state_dict()
        told = configs.as_dict(shape)
        write_safetensors(folder / f"{name}.safetensors", state, state.values(), told, {})
    return Set(folder)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command in this process: what it prints, or, with a code, its one line of error."""

    def run(arguments: list[str], code: int = 0) -> str:
        capfd.readouterr()
        assert cli.main(arguments) == code
        said = capfd.readouterr()
        if code:
            [line] = said.err.splitlines()
            return line
        return said.out

    return run


def started(arguments: list[str], rank: int = 0, world: int = 1, slow: bool = False) -> Any:
    """A process of its own, as torchrun starts one."""
    program = ["-c", SLOW] if slow else ["-m", "efficientsam_pl"]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RANK": str(rank),
        "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "here",
        "MASTER_PORT": "1234",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(*processes: Any, code: int = 0) -> list[str]:
    told = []
    for process in processes:
        out, err = process.communicate(timeout=200)
        assert process.returncode == code, err
        told.append(out + err)
    return told


def numbers(file: Path) -> dict[str, Any]:
    """All of a result that may not depend on who computed it, when and how."""
    told: dict[str, Any] = json.loads(file.read_text())
    assert told.pop("run")
    return told


def asked(folder: Path) -> list[int]:
    """The photos of all lines of an evaluation's folder."""
    lines = [line for f in sorted(folder.glob("rank-*")) for line in f.read_text().splitlines()]
    return sorted(json.loads(line)["photo"] for line in lines)


@pytest.fixture(scope="module")
def reference(discs: Set, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, undisturbed."""
    out = tmp_path_factory.mktemp("reference") / "one.json"
    assert cli.main(discs.arguments(f"out={out}")) == 0
    return out


def test_everything_is_counted_and_told(discs: Set, reference: Path) -> None:
    told = json.loads(reference.read_text())
    instances = sum(1 + image % 3 for image in range(40, 40 + PHOTOS))
    counts = told["counts"]
    assert (counts["photos"], counts["instances"]) == (PHOTOS, instances)
    assert (counts["skipped_crowds"], counts["skipped_empty"]) == (1, 1)
    assert counts["detections"] == instances
    assert set(told["numbers"]) == {*PROTOCOLS[11:-1].split(","), "detector_boxes"}
    for name, found in told["numbers"].items():
        if name != "detector_boxes":
            assert 0 <= found["miou"]["all"] <= found["oracle_miou"]["all"] <= 1
    assert len(told["numbers"]["detector_boxes"]["ap"]) == 12
    assert told["protocols"]["click_iterative_3"]["mask_rule"].endswith("the mask fed back")
    assert told["protocols"]["detector_boxes"]["second_pass"] is True
    assert re.fullmatch("[0-9a-f]{64}", told["model"]["weights_sha256"])
    assert told["run"]["files"]["annotations_sha256"]
    assert asked(reference.with_suffix(".parts")) == list(range(40, 40 + PHOTOS))


def test_detector_boxes_score_what_pycocotools_counts(
    discs: Set, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (reference.with_suffix(".parts") / "rank-0.jsonl").read_text().splitlines()
    found = [
        {"image_id": record["photo"], "category_id": category, "score": score,
         "segmentation": {"size": size, "counts": counts}}
        for record in map(json.loads, lines)
        for category, score, size, counts in record["detections"]
    ]  # fmt: skip
    set_ = COCO(str(discs.folder / "set.json"))
    evaluation = COCOeval(set_, set_.loadRes(found), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    ours = numbers(reference)["numbers"]["detector_boxes"]["ap"]
    assert list(ours.values()) == pytest.approx(evaluation.stats.tolist(), abs=1e-9)


def test_batch_size_changes_no_digit(
    discs: Set, reference: Path, tmp_path: Path, here: Callable[..., str]
) -> None:
    for at_once in (3, 64):
        out = tmp_path / f"{at_once}.json"
        here(discs.arguments(f"out={out}", f"prompts_at_once={at_once}"))
        assert numbers(out) == numbers(reference)


def test_order_of_images_changes_no_digit(
    discs: Set, reference: Path, tmp_path: Path, here: Callable[..., str]
) -> None:
    listed = json.loads((discs.folder / "set.json").read_text())
    for part in listed.values():
        random.Random(1).shuffle(part)
    (tmp_path / "set.json").write_text(json.dumps(listed))
    here(discs.arguments(f"out={tmp_path}/a.json", f"annotations={tmp_path}/set.json"))
    assert numbers(tmp_path / "a.json") == numbers(reference)


@pytest.mark.slow
def test_two_ranks_write_what_one_writes(discs: Set, reference: Path, tmp_path: Path) -> None:
    arguments = discs.arguments(f"out={tmp_path}/a.json")
    told = ended(*(started(arguments, rank, 2) for rank in range(2)))
    assert numbers(tmp_path / "a.json") == numbers(reference)
    assert sum("a.json" in one for one in told) == 1  # one of them has written it
    assert asked(tmp_path / "a.parts") == list(range(40, 40 + PHOTOS))
    for rank in range(2):
        lines = (tmp_path / f"a.parts/rank-{rank}.jsonl").read_text().splitlines()
        assert [json.loads(line)["photo"] for line in lines] == list(
            range(40 + rank, 40 + PHOTOS, 2)
        )


def killed_amid(arguments: list[str], folder: Path, by: signal.Signals, code: int) -> str:
    """Starts the command, ends it after a few photos, and gives what it said."""
    process = started(arguments, slow=True)
    file, until = folder / "rank-0.jsonl", time.monotonic() + 120
    while not file.exists() or file.read_bytes().count(b"\n") < 2:
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(by)
    [told] = ended(process, code=code)
    return told


@pytest.mark.slow
def test_killed_evaluation_goes_on_with_two_ranks_and_scores_nothing_twice(
    discs: Set, reference: Path, tmp_path: Path
) -> None:
    arguments, parts = discs.arguments(f"out={tmp_path}/a.json"), tmp_path / "a.parts"
    killed_amid(arguments, parts, signal.SIGKILL, -signal.SIGKILL)
    before = asked(parts)
    assert 2 <= len(before) < PHOTOS
    with (parts / "rank-0.jsonl").open("a") as file:
        file.write('{"photo":46,"instan')  # what a crash of the machine leaves
    told = ended(*(started(arguments, rank, 2) for rank in range(2)))
    assert "rank-0.jsonl: 1 line that a kill cut short" in told[0]
    assert numbers(tmp_path / "a.json") == numbers(reference)
    assert asked(parts) == list(range(40, 40 + PHOTOS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "why"),
    [(signal.SIGTERM, 75, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C; the same command continues")],
)
def test_evaluation_that_is_asked_to_stop_finishes_its_image(
    discs: Set, reference: Path, tmp_path: Path, here: Callable[..., str],
    number: signal.Signals, code: int, why: str,
) -> None:  # fmt: skip
    arguments, parts = discs.arguments(f"out={tmp_path}/a.json"), tmp_path / "a.parts"
    told = killed_amid(arguments, parts, number, code)
    assert re.search(rf"efficientsam: \d of 7 photos are done; stopped, since it got {why}\n", told)
    assert not (tmp_path / "a.json").exists()
    here(arguments)
    assert numbers(tmp_path / "a.json") == numbers(reference)
    assert asked(parts) == list(range(40, 40 + PHOTOS))


def test_model_is_read_from_its_own_file_and_a_name_must_not_contradict_it(
    discs: Set, reference: Path, tmp_path: Path, here: Callable[..., str]
) -> None:
    out = tmp_path / "unnamed.json"
    unnamed = [a for a in discs.arguments(f"out={out}") if not a.startswith("model.name=")]
    here(unnamed)
    named, by_file = (json.loads(file.read_text()) for file in (reference, out))
    assert by_file["numbers"] == named["numbers"]
    assert by_file["model"] == named["model"] | {"name": "tiny"}  # the stem of either file
    other = "model.name=efficient_sam_s_interactive"
    said = here(discs.arguments(other, f"out={tmp_path}/o.json"), code=2)
    assert "tiny.safetensors holds weights of another model" in said


def test_images_of_another_model_are_not_mixed_in(
    discs: Set, reference: Path, tmp_path: Path, here: Callable[..., str]
) -> None:
    out = f"out={tmp_path}/a.json"
    other = f"model.weights={discs.folder}/other.safetensors"
    here(discs.arguments(out, other))
    first = numbers(tmp_path / "a.json")
    line = here(discs.arguments(out), code=2)
    assert "a.parts holds another evaluation's photos: model.weights_sha256=" in line
    assert "fresh=true" in line
    assert numbers(tmp_path / "a.json") == first != numbers(reference)
    here(discs.arguments(out, "fresh=true"))
    assert numbers(tmp_path / "a.json") == numbers(reference)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("seed=1", "seed=0 for 1"),
        ("protocols=[box]", "protocols.click_center"),
        ("detector.rule=token_0", 'mask_rule="box_iou" for "token_0"'),
        ("photos=3", "data.photos=7 for 3"),
    ],
)
def test_what_differs_from_the_images_at_hand_is_named(
    change: str, key: str, discs: Set, reference: Path, here: Callable[..., str]
) -> None:
    assert key in here(discs.arguments(f"out={reference}", change), code=2)


def test_done_evaluation_is_not_done_again(
    discs: Set, reference: Path, here: Callable[..., str]
) -> None:
    before = numbers(reference)
    reference.unlink()
    parts = reference.with_suffix(".parts")
    lines = (parts / "rank-0.jsonl").read_bytes()
    assert "7 photos" in here(discs.arguments(f"out={reference}"))
    assert numbers(reference) == before
    assert (parts / "rank-0.jsonl").read_bytes() == lines


def test_damaged_image_is_counted_and_scored_once_it_is_whole(
    discs: Set, reference: Path, tmp_path: Path, here: Callable[..., str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for file in (discs.folder / "photos").iterdir():
        (photos / file.name).write_bytes(file.read_bytes())
    whole = (photos / "44.jpg").read_bytes()
    (photos / "44.jpg").write_bytes(whole[: len(whole) // 2])
    arguments = discs.arguments(f"out={tmp_path}/a.json", f"images={photos}")
    assert "6 photos" in here(arguments)
    told = numbers(tmp_path / "a.json")
    assert told["counts"]["damaged_photos"] == 1
    [damage] = told["damaged"]
    assert damage["kind"] == "bad photo"
    assert "44" in damage["photo"]
    (photos / "44.jpg").write_bytes(whole)
    here(arguments)
    assert numbers(tmp_path / "a.json") == numbers(reference)


def test_missing_image_is_told(discs: Set, tmp_path: Path, here: Callable[..., str]) -> None:
    listed = json.loads((discs.folder / "set.json").read_text())
    listed["images"][2]["file_name"] = "gone.jpg"
    (tmp_path / "set.json").write_text(json.dumps(listed))
    arguments = discs.arguments(f"out={tmp_path}/a.json", f"annotations={tmp_path}/set.json")
    assert "1 damaged" in here(arguments)
    told = numbers(tmp_path / "a.json")
    assert told["counts"]["photos"] == PHOTOS - 1
    assert [one["kind"] for one in told["damaged"]] == ["missing photo"]


def test_ground_truth_scores_one_everywhere(
    discs: Set, tmp_path: Path, here: Callable[..., str]
) -> None:
    listed = json.loads((discs.folder / "set.json").read_text())
    # in AP an instance without a pixel is one that nobody finds, as COCO counts
    listed["annotations"] = [one for one in listed["annotations"] if one["area"] > 0]
    (tmp_path / "set.json").write_text(json.dumps(listed))
    given = [f"annotations={tmp_path}/set.json", "baseline=ground_truth"]
    here(discs.arguments(f"out={tmp_path}/a.json", *given))
    told = numbers(tmp_path / "a.json")
    for name, found in told["numbers"].items():
        if name == "detector_boxes":
            assert found["ap"]["ap"] == found["ap"]["ar100"] == 1.0
        else:
            assert found["miou"]["all"] == found["oracle_miou"]["all"] == 1.0
    assert told["model"] == {"name": "ground truth", "baseline": "ground_truth"}


def test_filled_box_scores_what_ten_lines_of_pycocotools_count(
    shared: Path, tmp_path: Path, here: Callable[..., str]
) -> None:
    folder = shared / "data/coco/COCO-MINI"
    file = folder / "annotations/instances_val2017.json"
    here([
        "evaluate", "kind=coco", f"annotations={file}", f"images={folder}/val2017",
        "baseline=filled_box", "protocols=[box]", f"out={tmp_path}/a.json",
    ])  # fmt: skip
    set_ = COCO(str(file))
    ious: dict[str, list[float]] = {"all": [], "small": [], "medium": [], "large": []}
    for one in set_.loadAnns(set_.getAnnIds(iscrowd=False)):
        mask = set_.annToMask(one).astype(bool)
        if one["area"] > 0 and mask.any():
            filled = np.outer(mask.any(axis=1), np.ones(mask.shape[1], bool))
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            filled = np.zeros_like(mask)
            filled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
            size = ["small", "medium", "large"][(one["area"] >= 1024) + (one["area"] >= 9216)]
            for name in ("all", size):
                ious[name].append((mask & filled).sum() / (mask | filled).sum())
    told = numbers(tmp_path / "a.json")
    expected = {name: float(np.mean(values)) for name, values in ious.items()}
    for key in ("miou", "oracle_miou", "filled_box_miou"):
        assert told["numbers"]["box"][key] == pytest.approx(expected, abs=1e-12)
    assert "reachable_miou" not in told["numbers"]["box"]  # it has no mask grid
    assert told["counts"]["instances"] == len(ious["all"]) == 619


def test_lvis_scores_ground_truth_as_perfect(
    shared: Path, tmp_path: Path, here: Callable[..., str]
) -> None:
    folder = shared / "data/lvis_val_100"
    file = folder / "lvis_val_100.json"
    listed = json.loads(file.read_text())
    boxes = [
        {"score": 1.0} | {key: one[key] for key in ("image_id", "category_id", "bbox")}
        for one in listed["annotations"]
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    here([
        "evaluate", "-c", "evaluate/lvis", f"annotations={file}", f"images={folder}/images",
        f"detector.results={tmp_path}/boxes.json", "baseline=ground_truth",
        f"out={tmp_path}/a.json",
    ])  # fmt: skip
    told = numbers(tmp_path / "a.json")
    assert told["counts"]["photos"] == 7
    assert told["numbers"]["detector_boxes"]["ap"]["ap"] == 1.0
    assert "ap_rare" in told["numbers"]["detector_boxes"]["ap"]
    assert told["numbers"]["click_random_3"]["miou"]["all"] == 1.0
    assert len(told["damaged"]) == len(listed["images"]) - 7


def test_shards_score_what_training_logs_of_them(
    discs: Set, tmp_path: Path, here: Callable[..., str]
) -> None:
    here([
        "pack", "coco", "--annotations", f"{discs.folder}/set.json",
        "--images", f"{discs.folder}/photos", "--out", f"{tmp_path}/shards",
        "--samples-per-shard", "4", "--workers", "0",
    ])  # fmt: skip
    model = [
        f"model.name={discs.folder}/tiny.yaml",
        f"model.weights={discs.folder}/tiny.safetensors",
    ]
    shown = here(["evaluate", *model, f"shards={tmp_path}/shards/*.tar", f"out={tmp_path}/a.json"])
    told = numbers(tmp_path / "a.json")
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


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "boxes.json is no JSON"),
        ("{}", "boxes.json is no list of detections"),
        ('[{"image_id": 40, "category_id": 3, "score": 1}]', "no 'bbox'"),
        (
            '[{"image_id": 7, "category_id": 3, "score": 1, "bbox": [1, 1, 9, 9]}]',
            "another data set",
        ),
    ],
)
def test_bad_detector_file_is_one_line(
    content: str, told: str, discs: Set, tmp_path: Path, here: Callable[..., str]
) -> None:
    (tmp_path / "boxes.json").write_text(content)
    boxes = f"detector.results={tmp_path}/boxes.json"
    assert told in here(discs.arguments(f"out={tmp_path}/a.json", boxes), code=2)
    assert not (tmp_path / "a.json").exists()


def test_detections_that_are_left_out_are_counted(
    discs: Set, tmp_path: Path, here: Callable[..., str]
) -> None:
    good = {"image_id": 40, "category_id": 3, "score": 1.0, "bbox": [1, 1, 9, 9]}
    bad: list[dict[str, Any]] = [{"score": float("nan")}, {"bbox": [900, 1, 9, 9]}, {"image_id": 7}]
    (tmp_path / "boxes.json").write_text(json.dumps([good, *(good | one for one in bad)]))
    boxes = f"detector.results={tmp_path}/boxes.json"
    here(discs.arguments(f"out={tmp_path}/a.json", boxes, "protocols=[]"))
    told = numbers(tmp_path / "a.json")
    assert told["counts"]["detections"] == 1
    assert sum(told["data"]["detections"]["left_out"].values()) == 3


def test_set_without_detections_scores_nothing_and_says_so(
    discs: Set, tmp_path: Path, here: Callable[..., str]
) -> None:
    (tmp_path / "boxes.json").write_text("[]")
    boxes = f"detector.results={tmp_path}/boxes.json"
    here(discs.arguments(f"out={tmp_path}/a.json", boxes, "protocols=[]"))
    assert numbers(tmp_path / "a.json")["numbers"]["detector_boxes"]["ap"]["ap"] == 0.0


def test_pictures_lie_beside_the_result(
    discs: Set, reference: Path, tmp_path: Path, here: Callable[..., str]
) -> None:
    pytest.importorskip("matplotlib")
    here(discs.arguments(f"out={tmp_path}/a.json", "plots=true"))
    for name in ("a_iou", "a_precision"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 500
        assert (tmp_path / f"{name}.svg").read_text().lstrip().startswith("<?xml")
    assert numbers(tmp_path / "a.json") == numbers(reference)


def test_compare_prints_one_table_and_refuses_what_differs(
    discs: Set, reference: Path, tmp_path: Path, here: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "250")
    other = f"model.weights={discs.folder}/other.safetensors"
    here(discs.arguments(f"out={tmp_path}/b.json", other))
    told = here(["compare", str(reference), f"{tmp_path}/b.json", "--markdown", f"{tmp_path}/t.md"])
    assert "EfficientSAM-Ti" in told
    assert "75.7" in told
    box = 100 * numbers(reference)["numbers"]["box"]["miou"]["all"]
    [row] = [
        line for line in (tmp_path / "t.md").read_text().splitlines()
        if numbers(reference)["model"]["weights_sha256"][:8] in line
    ]  # fmt: skip
    assert row.split("|")[2].strip() == f"{box:.1f}"
    assert "EfficientSAM" not in here(["compare", str(reference), "--no-paper"])
    here(discs.arguments(f"out={tmp_path}/c.json", "photos=4"))
    line = here(["compare", str(reference), f"{tmp_path}/c.json"], code=2)
    assert "one.json has data 7 photos" in line
    assert "c.json has 4 photos" in line


def test_comparing_what_is_no_result_names_it(
    discs: Set, reference: Path, tmp_path: Path, here: Callable[..., str]
) -> None:
    later = reference.read_text().replace('"version": 1', '"version": 9')
    (tmp_path / "later.json").write_text(later)
    assert "later.json is a result of version 9" in here(
        ["compare", f"{tmp_path}/later.json"], code=2
    )
    assert "set.json is no result" in here(["compare", f"{discs.folder}/set.json"], code=2)


def test_adapter_of_the_guide_scores_as_the_built_in_model(
    discs: Set, reference: Path, tmp_path: Path
) -> None:
    text = (ROOT / "docs/evaluation.md").read_text()
    adapter, _ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    defined: dict[str, Any] = {}
    exec(adapter, defined)
    model = load_model(f"{discs.folder}/tiny.yaml", f"{discs.folder}/tiny.safetensors")
    segmenter = defined["Adapter"](SamPredictor(model))
    assert isinstance(segmenter, PromptableModel)
    arguments = discs.arguments(f"out={tmp_path}/a.json", "protocols=[box,click_random_3]")
    config = configs.load(configs.EvaluateConfig, [], arguments[1:])
    assert evaluate(config, segmenter, {"name": "theirs"}) == tmp_path / "a.json"
    ours, theirs = numbers(reference)["numbers"], numbers(tmp_path / "a.json")["numbers"]
    assert set(theirs) == {"box", "click_random_3", "detector_boxes"}
    for name, found in theirs.items():
        for key, values in found.items():
            assert values == pytest.approx(ours[name][key], abs=1e-3)  # calls of other shapes
