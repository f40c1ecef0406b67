"""Outputs are tried before the work, on disks and in stores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.outputs import check_output

Serve = Callable[..., Any]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_output_in_a_store_is_tried_and_leaves_nothing(kind: Any, s3: None) -> None:
    fs = fsspec.filesystem("s3")
    fs.mkdir(f"outputs-{kind}")
    check_output("--json", f"s3://outputs-{kind}/a/report.json", kind)
    fs.invalidate_cache()
    assert fs.find(f"outputs-{kind}") == []


def test_store_that_does_not_exist_is_a_mistake_of_the_key(s3: None) -> None:
    with pytest.raises(UserError, match=r"^--json: cannot be written: .*s3://nowhere/a\.json$"):
        check_output("--json", "s3://nowhere/a.json", "file")


def test_web_address_is_no_output(tmp_path: Path, web: Serve) -> None:
    with pytest.raises(UserError, match=r"^--json: cannot be written: .*a\.json$") as caught:
        check_output("--json", f"{web(tmp_path).url}/a.json", "file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_local_output_is_tried(form: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    check_output("--json", form.format(tmp_path / "new" / "a.json"), "file")
    with pytest.raises(UserError, match="--json: cannot be written: Not a directory"):
        check_output("--json", form.format(tmp_path / "file" / "a.json"), "file")
