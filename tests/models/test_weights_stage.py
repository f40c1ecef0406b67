from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from efficientsam_pl.models.weights import safetensors_header
from efficientsam_pl.models.weights_stage import stage_of


def test_the_stage_stands_in_the_header_of_our_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(2)}, path, safetensors_header({}, {"stage": "classify"}))
    assert stage_of(path) == "classify"


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04" * 9, b"\xff" * 40, b"\x02" + bytes(7) + b"{}"]
)
def test_other_files_state_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    assert stage_of(path) is None
    assert stage_of(tmp_path / "missing") is None


def test_safetensors_of_others_state_none(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(2)}, path, {"format": "pt"})
    assert stage_of(path) is None
