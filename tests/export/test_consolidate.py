from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from efficientsam_pl.export.consolidate import write_safetensors


def test_failed_export_keeps_the_old_file_and_leaves_no_partial_one(tmp_path: Path) -> None:
    out = tmp_path / "new" / "model.safetensors"
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    write_safetensors(out, tensors, tensors.values(), {"name": "toy"}, {"steps": 3})

    def breaks_off() -> Iterator[Tensor]:
        yield tensors["a"] + 1
        raise OSError("stale file handle")

    with pytest.raises(OSError, match="stale"):
        write_safetensors(out, tensors, breaks_off(), {"name": "toy"}, {"steps": 4})
    assert [path.name for path in out.parent.iterdir()] == ["model.safetensors"]
    torch.testing.assert_close(load_file(out), tensors, rtol=0, atol=0)
