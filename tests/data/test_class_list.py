"""Class names of files and of packed folders."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from efficientsam_pl.data.class_list import packed_class_names, read_class_names
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.errors import UserError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no class"),
        ("cat\n\ndog\n", "line 2 is empty"),
        ("cat\ndog\ncat\n", "cat stands in lines 1 and 3"),
    ],
)
def test_a_list_that_names_no_class_or_one_twice_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "names.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_class_names(str(path))


def test_names_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("tabby cat \n  dog\n\n")
    assert read_class_names(str(path)) == ("tabby cat", "dog")


def test_names_stand_in_the_summary_beside_the_shards(
    tmp_path: Path, tar_of: Callable[..., Path], good_sample: dict[str, bytes]
) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
        tar_of(folder / "s.tar", {"x.jpg": good_sample["jpg"], "x.cls": b"0"})
    (folders[0] / "pack-summary.json").write_text(json.dumps({"classes": ["cat", "dog"]}))
    (folders[1] / "pack-summary-0-of-4.json").write_text(json.dumps({"classes": ["cat", "emu"]}))

    def names(pattern: str) -> tuple[str, ...]:
        return packed_class_names(open_shards(f"{tmp_path}/{pattern}/*.tar"), "data.train")

    assert names("a") == ("cat", "dog")
    assert names("b") == ("cat", "emu")
    assert names("c") == ()
    assert names("[ac]") == ("cat", "dog")
    with pytest.raises(UserError, match=r"data\.train: .* were packed with other classes"):
        names("[ab]")
