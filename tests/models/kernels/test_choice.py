"""The choice between plain operations and Triton kernels."""

import importlib.util

import pytest
import torch
from torch import nn

from efficientsam_pl.errors import UserError
from efficientsam_pl.models.kernels.choice import compute_dtype, runs_triton, set_kernels


class Fused(nn.Module):
    kernels = "plain"


def test_every_module_with_a_choice_is_set() -> None:
    inner, plain = Fused(), nn.Linear(1, 1)
    model = nn.Sequential(plain, nn.Sequential(inner))
    set_kernels(model, "plain")
    assert (inner.kernels, hasattr(plain, "kernels")) == ("plain", False)
    if importlib.util.find_spec("triton") is not None:
        set_kernels(model, "triton")
        assert inner.kernels == "triton"


def test_triton_kernels_without_triton_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    model = Fused()
    with pytest.raises(UserError, match="kernels=triton needs the package triton"):
        set_kernels(model, "triton")
    set_kernels(model, "plain")
    assert model.kernels == "plain"


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("0", False), (None, False)])
def test_a_cpu_runs_triton_only_through_its_interpreter(
    monkeypatch: pytest.MonkeyPatch, value: str | None, expected: bool
) -> None:
    if value is None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    else:
        monkeypatch.setenv("TRITON_INTERPRET", value)
    assert runs_triton(torch.zeros(1)) is expected


def test_autocast_chooses_the_dtype_of_products() -> None:
    x = torch.zeros(2, 2)
    assert compute_dtype(x) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(x) == (x @ x).dtype == torch.bfloat16
