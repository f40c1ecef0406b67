"""Result files: what is written is read, and nothing else is taken for one."""

import json
from pathlib import Path

import pytest

from efficientsam_pl.evaluation.results.result_file import (
    Result,
    ResultError,
    read_result,
    write_result,
)

RESULT = Result(
    model={"name": "tiny", "weights_sha256": "ab"},
    data={"kind": "coco", "photos": 2, "sha256": "cd"},
    seed=3,
    protocols={"box": {"mask_rule": "predicted_iou"}},
    numbers={"box": {"miou": {"all": 1 / 3, "small": None}}},
    counts={"photos": 2},
    damaged=[{"photo": "a.jpg", "kind": "bad photo"}],
    versions={"torch": "2"},
    run={"seconds": 1.5},
)


def test_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.json"
    write_result(RESULT, file)
    assert read_result(file) == RESULT
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


def test_file_names_its_format_and_version_first(tmp_path: Path) -> None:
    told = json.loads(RESULT.text())
    assert list(told)[:2] == ["format", "version"]
    assert (told["format"], told["version"]) == ("efficientsam_pl evaluation", 2)


def test_old_file_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    write_result(RESULT, file)
    before = file.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_result(RESULT, file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "it is no JSON"),
        ("[]", "is no result"),
        ("{}", "is no result"),
        ('{"format": "another"}', "is no result"),
        (
            RESULT.text().replace('"version": 2', '"version": 3'),
            "version 3; this program reads versions 1 and 2",
        ),
        (RESULT.text().replace('"seed"', '"sead"'), "damaged result"),
    ],
)
def test_other_files_are_named_with_the_reason(content: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(content)
    with pytest.raises(ResultError, match=told) as caught:
        read_result(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_first_version_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(RESULT.text().replace('"version": 2', '"version": 1'))
    assert read_result(file) == RESULT


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="cannot be read: No such file"):
        read_result(tmp_path / "gone.json")
