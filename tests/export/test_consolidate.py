"""Exported files appear whole or not at all, and writers of similar names do not meet."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from efficientsam_pl.export.consolidate import write_safetensors

STATE = {"first": torch.arange(6.0).reshape(2, 3), "second": torch.ones(4)}


def full_disk() -> Iterator[Tensor]:
    """Yields the first tensor, then fails as a disk without room does."""
    yield STATE["first"]
    raise OSError(28, "No space left on device")


def test_failed_export_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        write_safetensors(tmp_path / "x.safetensors", STATE, full_disk(), {}, {})
    assert list(tmp_path.iterdir()) == []


def test_failed_export_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    write_safetensors(out, STATE, STATE.values(), {}, {})
    before = out.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        write_safetensors(out, STATE, full_disk(), {}, {})
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("other", ["x.pt", "x.safetensors"])
def test_two_exports_of_one_stem_do_not_share_a_partial_file(tmp_path: Path, other: str) -> None:
    def interrupted_by_another() -> Iterator[Tensor]:
        yield STATE["first"]
        write_safetensors(tmp_path / other, STATE, [torch.zeros(2, 3), torch.zeros(4)], {}, {})
        yield STATE["second"]

    write_safetensors(tmp_path / "x.safetensors", STATE, interrupted_by_another(), {}, {})
    loaded = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in STATE.items())
    assert {path.name for path in tmp_path.iterdir()} == {"x.safetensors", other}
