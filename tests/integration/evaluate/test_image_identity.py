"""Scores belong to the bytes of the images that they were made of."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from tests.integration.evaluate.conftest import DiscSet

Run = Callable[..., str]
BOX = "protocols=[box]"


@pytest.fixture
def photos(discs: "DiscSet", tmp_path: Path) -> Path:
    """A copy of the images."""
    return Path(shutil.copytree(discs.folder / "photos", tmp_path / "photos"))


@pytest.fixture
def scored(discs: "DiscSet", photos: Path, tmp_path: Path, run: Run) -> list[str]:
    """Arguments of an evaluation of the copy that is done."""
    arguments = discs.arguments(f"out={tmp_path}/a.json", f"images={photos}", BOX)
    run(arguments)
    return arguments


def invert(file: Path) -> None:
    """Replace an image by its negative, without a change of its size in bytes or its times."""
    before = file.stat()
    with Image.open(file) as image:
        negative = ImageOps.invert(image)
    for quality in range(95, 0, -5):
        negative.save(file, "JPEG", quality=quality)
        if (room := before.st_size - file.stat().st_size) >= 0:
            break
    with file.open("ab") as stream:
        stream.write(b"\0" * room)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    """Run the command as torchrun's process of this rank."""
    environment = {
        "RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": world,
        "GROUP_RANK": 0,
        "TORCHELASTIC_RUN_ID": "none",
    }
    for key, value in environment.items():
        monkeypatch.setenv(key, str(value))


def test_image_that_is_replaced_in_place_is_refused_until_its_scores_are_thrown_away(
    scored: list[str], photos: Path, tmp_path: Path, discs: "DiscSet", run: Run
) -> None:
    first = discs.numbers(tmp_path / "a.json")
    invert(photos / "44.jpg")
    line = run(scored, code=2)
    assert "a.parts holds another evaluation's photos: 1 image changed, such as 44.jpg;" in line
    assert "fresh=true" in line
    assert discs.numbers(tmp_path / "a.json") == first
    run([*scored, "fresh=true"])
    again = discs.numbers(tmp_path / "a.json")
    assert again["data"]["sha256"] == first["data"]["sha256"]
    assert again["data"]["images_sha256"] != first["data"]["images_sha256"]


def test_images_of_another_folder_are_refused_and_copies_are_not(
    scored: list[str], photos: Path, tmp_path: Path, discs: "DiscSet", run: Run
) -> None:
    first = discs.numbers(tmp_path / "a.json")
    run([*scored, f"images={discs.folder}/photos"])
    assert discs.numbers(tmp_path / "a.json") == first
    other = Path(shutil.copytree(photos, tmp_path / "other"))
    for file in other.iterdir():
        invert(file)
    line = run([*scored, f"images={other}"], code=2)
    assert "7 images changed, such as 40.jpg, 41.jpg, 42.jpg;" in line


def test_results_of_inverted_images_stand_in_no_column_with_those_of_the_clean_ones(
    scored: list[str], photos: Path, tmp_path: Path, run: Run
) -> None:
    for file in photos.iterdir():
        invert(file)
    run([*scored, f"out={tmp_path}/b.json"])
    line = run(["compare", f"{tmp_path}/a.json", f"{tmp_path}/b.json"], code=2)
    assert "COCO box: " in line
    assert "a.json has images sha256" in line
    assert "they cannot stand in one column" in line


def test_result_of_the_first_version_is_compared_with_a_note(
    scored: list[str], tmp_path: Path, run: Run
) -> None:
    old = json.loads((tmp_path / "a.json").read_text()) | {"version": 1}
    del old["data"]["images_sha256"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    said = run(["compare", f"{tmp_path}/a.json", f"{tmp_path}/old.json", "--no-paper"])
    assert "No hash of the images is in" in said


def test_missing_image_is_tried_again_and_a_scored_one_may_not_go(
    discs: "DiscSet", photos: Path, tmp_path: Path, run: Run
) -> None:
    arguments = discs.arguments(f"out={tmp_path}/a.json", f"images={photos}", BOX)
    whole = (photos / "44.jpg").read_bytes()
    (photos / "44.jpg").unlink()
    assert "6 photos" in run(arguments)
    assert discs.numbers(tmp_path / "a.json")["counts"]["photos"] == 6
    (photos / "44.jpg").write_bytes(whole)
    assert "7 photos" in run(arguments)
    at_once = tmp_path / "b.json"
    run([*arguments, f"out={at_once}"])
    assert discs.numbers(tmp_path / "a.json") == discs.numbers(at_once)
    (photos / "44.jpg").unlink()
    assert "1 scored image missing, such as image 44;" in run(arguments, code=2)


def test_missing_image_among_the_first_few_is_tried_again(
    discs: "DiscSet", photos: Path, tmp_path: Path, run: Run
) -> None:
    arguments = discs.arguments(f"out={tmp_path}/a.json", f"images={photos}", BOX, "photos=3")
    whole = (photos / "41.jpg").read_bytes()
    (photos / "41.jpg").unlink()
    assert "3 photos" in run(arguments)
    (photos / "41.jpg").write_bytes(whole)
    run(arguments)
    run([*arguments, f"out={tmp_path}/b.json"])
    assert discs.numbers(tmp_path / "a.json") == discs.numbers(tmp_path / "b.json")
    assert discs.scored_photos(tmp_path / "a.parts") == [40, 41, 42, 43]


@pytest.mark.parametrize("rank", [0, 1])
def test_each_of_two_ranks_refuses_an_image_that_changed_whoever_scored_it(
    rank: int, scored: list[str], photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    invert(photos / "44.jpg")  # of rank 0
    as_rank(monkeypatch, rank, 2)
    assert "1 image changed, such as 44.jpg;" in run(scored, code=2)


def test_two_ranks_try_a_missing_image_again(
    discs: "DiscSet", photos: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = discs.arguments(f"out={tmp_path}/a.json", f"images={photos}", BOX)
    whole = (photos / "43.jpg").read_bytes()
    (photos / "43.jpg").unlink()
    for rank in range(2):
        as_rank(monkeypatch, rank, 2)
        run(arguments)
    assert discs.numbers(tmp_path / "a.json")["counts"]["photos"] == 6
    (photos / "43.jpg").write_bytes(whole)
    said = []
    for rank in range(2):
        as_rank(monkeypatch, rank, 2)
        said.append(run(arguments))
    assert "rank 0 is done; others have 1 photo left" in said[0]
    assert discs.numbers(tmp_path / "a.json")["counts"]["photos"] == 7
    assert discs.scored_photos(tmp_path / "a.parts") == list(range(40, 47))


def test_shard_that_is_replaced_by_one_of_its_size_is_refused(
    discs: "DiscSet", photos: Path, tmp_path: Path, run: Run
) -> None:
    def pack(name: str) -> Path:
        run([
            "pack", "coco", "--annotations", f"{discs.folder}/set.json", "--images", f"{photos}",
            "--out", f"{tmp_path}/{name}", "--workers", "0",
        ])  # fmt: skip
        [shard] = (tmp_path / name).glob("*.tar")
        return shard

    shard = pack("shards")
    model = [
        f"model.name={discs.folder}/tiny.yaml",
        f"model.weights={discs.folder}/tiny.safetensors",
    ]
    arguments = ["evaluate", *model, f"shards={shard}", f"out={tmp_path}/a.json", BOX]
    run(arguments)
    run(arguments)
    invert(photos / "44.jpg")
    other = pack("other")
    assert shard.stat().st_size == other.stat().st_size
    shard.write_bytes(other.read_bytes())
    line = run(arguments, code=2)
    assert "a.parts holds another evaluation's photos: data.shards_sha256=" in line
