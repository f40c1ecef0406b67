"""`compare`: one table of several results."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.evaluate.conftest import DiscSet


def test_compare_prints_one_table_and_refuses_what_differs(
    discs: "DiscSet", reference: Path, tmp_path: Path, run: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "250")
    other = f"model.weights={discs.folder}/other.safetensors"
    run(discs.arguments(f"out={tmp_path}/b.json", other))
    told = run(["compare", str(reference), f"{tmp_path}/b.json", "--markdown", f"{tmp_path}/t.md"])
    assert "EfficientSAM-Ti" in told
    assert "75.7" in told
    box = 100 * discs.numbers(reference)["numbers"]["box"]["miou"]["all"]
    [row] = [
        line for line in (tmp_path / "t.md").read_text().splitlines()
        if discs.numbers(reference)["model"]["weights_sha256"][:8] in line
    ]  # fmt: skip
    assert row.split("|")[2].strip() == f"{box:.1f}"
    assert "EfficientSAM" not in run(["compare", str(reference), "--no-paper"])
    run(discs.arguments(f"out={tmp_path}/c.json", "photos=4"))
    line = run(["compare", str(reference), f"{tmp_path}/c.json"], code=2)
    assert "one.json has data 7 photos" in line
    assert "c.json has 4 photos" in line


def test_comparing_what_is_no_result_names_it(
    discs: "DiscSet", reference: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    later = reference.read_text().replace('"version": 2', '"version": 9')
    (tmp_path / "later.json").write_text(later)
    assert "later.json is a result of version 9" in run(
        ["compare", f"{tmp_path}/later.json"], code=2
    )
    assert "set.json is no result" in run(["compare", f"{discs.folder}/set.json"], code=2)
