"""An evaluation that has nothing to score says why and writes no result."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.evaluate.conftest import DiscSet

Run = Callable[..., str]
NO_BOXES = ("detector.results=null", "detector.second_pass=false", "protocols=[box]")


def with_annotations(discs: "DiscSet", file: Path, change: Callable[[Any], Any]) -> str:
    listed = json.loads((discs.folder / "set.json").read_text())
    listed["annotations"] = change(listed["annotations"])
    file.write_text(json.dumps(listed))
    return f"annotations={file}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda all_: [one | {"iscrowd": 1} for one in all_], "16 crowds and 0 empty ones skipped"),
        (
            lambda all_: [one for one in all_ if one["id"] == 901],
            "0 crowds and 1 empty one skipped",
        ),
        (lambda all_: [], "0 crowds and 0 empty ones skipped"),
    ],
    ids=["crowds", "empty", "none"],
)
def test_set_without_an_instance_that_counts_is_an_error(
    change: Callable[[Any], Any], reason: str, discs: "DiscSet", tmp_path: Path, run: Run
) -> None:
    given = with_annotations(discs, tmp_path / "set.json", change)
    line = run(discs.arguments(given, *NO_BOXES, f"out={tmp_path}/a.json"), code=2)
    assert "nothing to score in" in line
    assert f"set.json: 7 photos without an instance that counts ({reason})" in line
    assert not (tmp_path / "a.json").exists()


def test_the_key_that_scores_crowds_is_named_and_starts_over(
    discs: "DiscSet", tmp_path: Path, run: Run
) -> None:
    given = with_annotations(
        discs, tmp_path / "set.json", lambda all_: [one | {"iscrowd": 1} for one in all_]
    )
    arguments = discs.arguments(given, *NO_BOXES, f"out={tmp_path}/a.json")
    assert run(arguments, code=2).endswith("; crowds=objects scores crowds")
    run([*arguments, "crowds=objects"])
    counts = json.loads((tmp_path / "a.json").read_text())["counts"]
    assert (counts["instances"], counts["skipped_crowds"], counts["skipped_empty"]) == (15, 0, 1)


@pytest.mark.parametrize("boxes", [True, False])
def test_images_that_cannot_be_decoded_are_an_error_that_names_one(
    boxes: bool, discs: "DiscSet", tmp_path: Path, run: Run
) -> None:
    photos = Path(shutil.copytree(discs.folder / "photos", tmp_path / "photos"))
    for file in photos.iterdir():
        file.write_bytes(b"no image")
    more = () if boxes else NO_BOXES
    out = f"out={tmp_path}/a.json"
    line = run(discs.arguments(f"images={photos}", *more, out), code=2)
    assert "set.json: no image can be used: bad photo: 7, such as 40.jpg" in line
    assert not (tmp_path / "a.json").exists()
    run(discs.arguments(*more, out))  # they are tried again
    assert (tmp_path / "a.json").exists()


def test_missing_files_are_an_error_that_names_one(
    discs: "DiscSet", tmp_path: Path, run: Run
) -> None:
    (tmp_path / "photos").mkdir()
    line = run(discs.arguments(f"images={tmp_path}/photos", f"out={tmp_path}/a.json"), code=2)
    assert "0 of 7 images" in line
    assert ".jpg" in line
    assert not (tmp_path / "a.json").exists()


def test_detections_alone_are_scored_as_long_as_there_is_an_object(
    discs: "DiscSet", tmp_path: Path, run: Run
) -> None:
    given = with_annotations(discs, tmp_path / "set.json", lambda all_: all_[:1])
    run(discs.arguments(given, "protocols=[]", f"out={tmp_path}/a.json"))
    empty = with_annotations(discs, tmp_path / "set.json", lambda _: [])
    line = run(discs.arguments(empty, "protocols=[]", f"out={tmp_path}/b.json"), code=2)
    assert "nothing to score in" in line
    assert not (tmp_path / "b.json").exists()


def test_shards_without_an_instance_that_counts_are_an_error(
    discs: "DiscSet", tmp_path: Path, run: Run
) -> None:
    given = with_annotations(
        discs, tmp_path / "set.json", lambda all_: [one | {"iscrowd": 1} for one in all_]
    )
    run([
        "pack", "coco", "--annotations", given.partition("=")[2],
        "--images", f"{discs.folder}/photos", "--out", f"{tmp_path}/shards", "--workers", "0",
    ])  # fmt: skip
    model = [
        f"model.name={discs.folder}/tiny.yaml",
        f"model.weights={discs.folder}/tiny.safetensors",
    ]
    shards = f"shards={tmp_path}/shards/*.tar"
    line = run(["evaluate", *model, shards, f"out={tmp_path}/a.json"], code=2)
    assert "nothing to score in" in line
    assert "*.tar: " in line
    assert not (tmp_path / "a.json").exists()
