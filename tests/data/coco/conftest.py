"""Annotation files of squares, with empty image files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SQUARE = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]


def annotation_record(number: Any, image_id: Any = 1, **others: Any) -> dict[str, Any]:
    fields = {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "segmentation": SQUARE,
    }
    return fields | {"area": 400.0, "iscrowd": 0} | others


def image_record(number: int, **others: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.jpg", "height": 60, "width": 80} | others


def coco_file(**others: Any) -> dict[str, Any]:
    """Two images, three squares, two categories."""
    return {
        "images": [image_record(2), image_record(1)],
        "annotations": [
            annotation_record(7, 2),
            annotation_record(5),
            annotation_record(6, category_id=9),
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 1, "name": "dog"}],
    } | others


Write = Callable[..., tuple[str, str]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an annotation file and empty images; returns the two paths."""

    def written(content: Any, *images: str) -> tuple[str, str]:
        for name in images or ("1.jpg", "2.jpg"):
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        file = tmp_path / "annotations.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(file), str(tmp_path / "images")

    return written
