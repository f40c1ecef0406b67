import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.sami.flop import student_flop
from benchmarks.step_counts import __main__ as program
from benchmarks.step_counts import counts
from benchmarks.step_counts.costs import touched_bytes
from benchmarks.step_counts.counter import Label, OperationCounter
from benchmarks.step_counts.cuda_autocast import cuda_autocast_on_cpu
from benchmarks.step_counts.goals import goal_rows
from benchmarks.step_counts.recipes import RECIPES, SAMI, StepRequest
from benchmarks.step_counts.step import captured_step, labels_of
from benchmarks.step_counts.stub_backend import StubBackend, compiling_with
from benchmarks.step_counts.table import LOWERED, step_counts, stored_tiny_counts

FLOAT = 4  # bytes


@pytest.fixture
def dynamo_reset() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def test_matrix_product_is_counted_by_part_forward_and_backward() -> None:
    inputs, weights = torch.ones(2, 3), torch.ones(3, 5, requires_grad=True)
    model = SimpleNamespace(project=lambda: inputs @ weights)
    counter = OperationCounter()
    with counter, counter.labelled([Label(model, "project", "head")]):
        output = model.project()
        output.backward(torch.ones(2, 5))
    parts = counter.summary()["parts"]
    assert parts["head/fwd"]["launches"] == 1
    assert counter.flop["head/fwd"] == 2 * 2 * 3 * 5
    assert counter.bytes["head/fwd"] == FLOAT * (2 * 3 + 3 * 5 + 2 * 5)
    assert counter.flop["head/bwd"] == 2 * 3 * 2 * 5  # inputs' transpose by the gradient


def test_labels_are_gone_after_the_context() -> None:
    def project() -> int:
        return 1

    model = SimpleNamespace(project=project)
    counter = OperationCounter()
    with counter.labelled([Label(model, "project", "head")]):
        assert model.project is not project
    assert model.project is project


def test_unknown_part_is_refused() -> None:
    counter = OperationCounter()
    with (
        pytest.raises(AttributeError, match="gone"),
        counter.labelled([Label(SimpleNamespace(), "gone", "head")]),
    ):
        pass


def test_views_are_free_and_a_broadcast_axis_is_read_once() -> None:
    row = torch.ones(7)
    counter = OperationCounter()
    with counter:
        broadcast = row.view(1, 7).expand(3, 7)
    assert counter.launches.total() == 0
    assert touched_bytes(broadcast) == FLOAT * 7


def test_value_read_by_the_host_is_counted_at_its_line() -> None:
    counter = OperationCounter()
    with counter:
        torch.ones(()).item()
    assert sum(counter.device_reads.values()) == 1


def test_sums_in_bfloat16_are_float32_under_cudas_rules_alone() -> None:
    values = torch.ones(3, dtype=torch.bfloat16)
    with cuda_autocast_on_cpu(), torch.autocast("cpu", torch.bfloat16):
        assert values.sum().dtype == torch.float32
        assert values.exp().dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert values.sum().dtype == torch.bfloat16


def waves(values: Tensor) -> Tensor:
    return values.sin() + values.cos()


@pytest.mark.usefixtures("dynamo_reset")
def test_compiled_region_returns_zeros_and_its_calls_are_counted() -> None:
    backend = StubBackend(OperationCounter(), lower=False)
    with compiling_with(backend):
        compiled = torch.compile(waves)
        for _ in range(3):
            output = compiled(torch.ones(4))
    assert output.tolist() == [0, 0, 0, 0]
    assert list(backend.calls.values()) == [3]
    assert waves(torch.ones(4)).sum() > 0


@pytest.mark.usefixtures("dynamo_reset")
def test_two_waves_fuse_to_one_kernel_that_reads_and_writes_once() -> None:
    pytest.importorskip("triton")
    backend = StubBackend(OperationCounter(), lower=True)
    with compiling_with(backend):
        torch.compile(waves)(torch.ones(1024))
    [(_, region)] = backend.regions
    assert (region.triton, region.library, region.bytes) == (1, 0, 2 * 1024 * FLOAT)
    assert not torch.cuda.is_initialized()


def test_forward_of_pretraining_costs_what_is_worked_out_by_hand() -> None:
    request = StepRequest(SAMI, images=2, scale="small")
    summary = counts.whole(request)
    config = captured_step(request).module.model.config
    by_hand = 2 * student_flop(config, 256) / 1e9
    forward = [summary["parts"][f"sami_{part}/fwd"]["GFLOP"] for part in ("encoder", "decoder")]
    assert sum(forward) == pytest.approx(by_hand, abs=0.1)
    assert summary["device_reads"] == {}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_named_part_is_one_of_the_module(recipe: str) -> None:
    module = captured_step(StepRequest(recipe, images=1, scale="small")).module
    with OperationCounter().labelled(labels_of(recipe, module, inside=True)):
        pass


@pytest.mark.slow
def test_finetuning_counts_every_part_of_its_step() -> None:
    parts = counts.whole(StepRequest("finetune-each", images=1, scale="small"))["parts"]
    named = {part.removesuffix("/fwd") for part in parts if part.endswith("/fwd")}
    assert named >= {
        *("encoder", "pixel_norm", "prompt_sampler", "prompt_encoder", "mask_decoder.two_way"),
        *("mask_decoder.upscaling", "loss", "clip", "optimizer"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_steady_steps_compile_nothing_more_and_read_nothing(recipe: str) -> None:
    """In a process of its own, where shapes are not checked: what checks them does not compile."""
    loop = _in_own_process(
        "from benchmarks.step_counts.table import tiny_loop", f"tiny_loop({recipe!r})"
    )
    stored = stored_tiny_counts(recipe)
    assert loop["compiled_calls"] == stored["compiled_calls"] > 0
    for figure in ("reads", "recompiles", "graph_breaks"):
        assert loop[figure] == stored[figure] == 0, figure


@pytest.mark.slow
@pytest.mark.parametrize("recipe", LOWERED)
def test_a_tiny_step_launches_no_more_than_it_did(recipe: str) -> None:
    """Another version of torch may fuse a few kernels more or fewer."""
    pytest.importorskip("triton")
    fused = _in_own_process(
        "from benchmarks.step_counts.table import tiny_fused", f"tiny_fused({recipe!r})"
    )
    assert fused["launches"] == pytest.approx(stored_tiny_counts(recipe)["launches"], rel=0.05)


def _in_own_process(imports: str, expression: str) -> Any:
    code = f"import json\n{imports}\nprint(json.dumps({expression}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_table_separates_bytes_of_images_from_those_of_a_step() -> None:
    """10 GB, 2 of them once: of four images 2 GB each."""
    parts = {
        "optimizer/fwd": {"launches": 1, "GB": 1.5},
        "clip/fwd": {"launches": 1, "GB": 0.5},
        "other/fwd": {"launches": 1, "GB": 3.0},
    }
    fused = {"launches": 7, "GB": 10.0, "outside": {"parts": parts}}
    counts = step_counts(fused, {"host_cpu_ms_min": 4.5}, images=4)
    assert (counts.image_gb, counts.step_gb) == (2.0, 2.0)
    assert (counts.launches, counts.host_ms) == (7, 4.5)


def test_goals_are_judged_by_the_form_that_was_counted() -> None:
    counted = {
        "sami-stored": {
            "images": 256,
            "fused": {"launches": 900, "GB": 57.0},
            "loop": {"host_cpu_ms_min": 3.0, "device_reads_in_a_steady_step": {"a.py:3": 1}},
        }
    }
    rows = {row.id: row for row in goal_rows(counted, "compile=regions, kernels=triton")}
    met = {row_id: row.met() for row_id, row in rows.items()}
    assert met == {
        "sami_launches": True,
        "sami_gb": False,
        "sami_host_ms": True,
        "sami_reads": False,
    }
    assert "compile=regions, kernels=triton" in rows["sami_gb"].work


def test_totals_become_rows_and_all_figures_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"launches": 7, "GB": 1.5, "GFLOP": 2.0, "device_reads": {"a.py:3": 2}, "parts": {}}
    monkeypatch.setattr(counts, "whole", lambda request: figures)
    given = ["--only", "whole", "--json", "--out", str(tmp_path / "counts.json")]
    assert program.main(given) == 0
    rows = {row["id"]: row["value"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["step_counts.sami-stored.whole.launches"] == 7
    assert rows["step_counts.finetune-each.whole.device_reads"] == 2
    assert json.loads((tmp_path / "counts.json").read_text())["sami-stored"]["whole"] == figures


@pytest.mark.parametrize(
    ("option", "value"),
    [("--recipes", "nothing"), ("--only", "half"), ("--steps", "3"), ("--compile", "none")],
)
def test_wrong_choice_is_named(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main([option, value])
    assert ended.value.code == 2
    assert f"{option}" in capsys.readouterr().err
