"""A set of discs with a detector's boxes and a model, its result, and the command."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam_pl.cli import main as cli
from efficientsam_pl.rle import encode

PHOTOS, HEIGHT, WIDTH = 7, 48, 60


@dataclass(frozen=True)
class DiscSet:
    """Photos with discs, a detector's boxes, a model."""

    folder: Path
    protocols = ("box", "click_center", "click_random_1", "click_random_3", "click_iterative_3")

    def arguments(self, *more: str) -> list[str]:
        f = self.folder
        given = {arg.partition("=")[0] for arg in more}
        standard = [
            f"annotations={f}/set.json", f"images={f}/photos", f"detector.results={f}/boxes.json",
            "kind=coco", "accelerator=cpu", f"protocols=[{','.join(self.protocols)}]",
            "detector.second_pass=true",
        ]  # fmt: skip
        if "baseline" not in given:
            standard += [f"model.name={f}/tiny.yaml", f"model.weights={f}/tiny.safetensors"]
        return ["evaluate", *(a for a in standard if a.partition("=")[0] not in given), *more]

    @staticmethod
    def numbers(file: Path) -> dict[str, Any]:
        """All of a result that may not depend on who computed it, when and how."""
        result: dict[str, Any] = json.loads(file.read_text())
        assert result.pop("run")
        return result

    @staticmethod
    def scored_photos(folder: Path) -> list[int]:
        """The photos of all lines of an evaluation's folder."""
        lines = [line for f in sorted(folder.glob("rank-*")) for line in f.read_text().splitlines()]
        return sorted(json.loads(line)["photo"] for line in lines)


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


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory, write_model: Callable[..., Path]) -> DiscSet:
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
    more = "prompts: {negative_clicks: true, mask_prompts: true, min_points: 6, max_points: 12}\n"
    for seed, name in enumerate(("tiny", "other")):
        write_model(folder / f"{name}.safetensors", seed, more=more)
    return DiscSet(folder)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command in this process: what it prints, or, with a code, its one line of error."""

    def call(arguments: list[str], code: int = 0) -> str:
        capfd.readouterr()
        assert cli.main(arguments) == code
        said = capfd.readouterr()
        if code:
            [line] = said.err.splitlines()
            return line
        return said.out

    return call


@pytest.fixture(scope="session")
def reference(discs: DiscSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, undisturbed."""
    out = tmp_path_factory.mktemp("reference") / "one.json"
    assert cli.main(discs.arguments(f"out={out}")) == 0
    return out
