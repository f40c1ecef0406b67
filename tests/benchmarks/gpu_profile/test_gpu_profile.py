"""Parts are saved one by one and judged; a tiny profile runs all kinds of them on a CPU."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_profile import __main__ as program
from benchmarks.gpu_profile import parts
from benchmarks.gpu_profile.goals import goal_rows
from benchmarks.gpu_profile.parts import Part, all_parts
from benchmarks.gpu_profile.setting import Result, Setting
from benchmarks.gpu_profile.spans import Spans, step_times

TINY = ("--device", "cpu", "--tiny", "--json")
OF_EACH_KIND = (
    *("product", "command_finetune_ti_8_regions_triton", "command_pretrain_s_256_regions_triton"),
    *("dissected_finetune_ti_8", "sami_alone_256", "encoder_ti", "online_512"),
)


def of_name(name: str, calls: list[str]) -> Part:
    def measure(_: Setting) -> Result:
        calls.append(name)
        if name == "broken":
            raise RuntimeError("no memory")
        return {"images_per_s": 2.0}

    return Part(name, measure)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    listed = [of_name(name, made) for name in ("first", "broken", "last")]
    monkeypatch.setattr(parts, "all_parts", lambda: listed)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    monkeypatch.setenv("TRITON_CACHE_DIR", "unused")
    return made


def test_failed_part_saves_its_error_and_the_next_one_runs(
    calls: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main([*TINY, "--out", str(tmp_path)]) == 0
    assert calls == ["first", "broken", "last"]
    assert "no memory" in json.loads((tmp_path / "broken.json").read_text())["error"]
    printed = capsys.readouterr()
    assert "broken has failed: RuntimeError: no memory" in printed.err
    ids = [row["id"] for row in json.loads(printed.out)["rows"]]
    assert ids == ["gpu.part.first", "gpu.part.last"]


def test_second_call_repeats_failed_parts_alone(calls: list[str], tmp_path: Path) -> None:
    for _ in range(2):
        program.main([*TINY, "--out", str(tmp_path)])
    assert calls == ["first", "broken", "last", "broken"]


def test_no_part_begins_after_the_budget(calls: list[str], tmp_path: Path) -> None:
    program.main([*TINY, "--out", str(tmp_path), "--budget-s", "0"])
    assert calls == []


def test_only_named_parts_run(calls: list[str], tmp_path: Path) -> None:
    program.main([*TINY, "--out", str(tmp_path), "--parts", "last"])
    assert calls == ["last"]


def test_without_a_gpu_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert program.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_parts_have_names_of_their_own_and_all_combinations_are_there() -> None:
    names = [part.name for part in all_parts()]
    assert len(set(names)) == len(names)
    for form in ("regions", "step"):
        for kernels in ("triton", "plain"):
            for case in ("finetune_ti_4", "finetune_s_16", "pretrain_s_256", "pretrain_s_1024"):
                assert f"command_{case}_{form}_{kernels}" in names


def test_goals_by_hand() -> None:
    """The faster of two runs counts; 340 of 800 TFLOP/s miss 45 %; a failed part has no row."""
    results: dict[str, Result] = {
        "product": {"tflops": 800.0},
        "command_finetune_ti_8_regions_triton": {"images_per_s": 50.0},
        "command_finetune_ti_16_step_triton": {"images_per_s": 70.0},
        "command_finetune_ti_4_step_triton": {"images_per_s": 90.0},  # too few images
        "command_finetune_s_8_regions_triton": {"error": "no memory"},
        "command_pretrain_s_256_regions_triton": {"images_per_s": 900.0},
        "sami_alone_256": {"images_per_s": 1000.0, "tflops": 500.0, "batch": 256},
        "sami_alone_1024": {"images_per_s": 1100.0, "tflops": 340.0, "batch": 1024},
        "online_512": {"images_per_s": 500.0, "tflops": 420.0, "batch": 512},
        "encoder_s": {"images_per_s": 600.0, "released_images_per_s": 150.0},
    }
    rows = {row.id: row for row in goal_rows(results)}
    met = {row_id: row.met() for row_id, row in rows.items()}
    assert met == {
        "gpu.finetune_ti": True,
        "gpu.sami_command": True,
        "gpu.sami_alone": False,
        "gpu.online_224": True,
        "gpu.encoder_s": True,
    }
    assert rows["gpu.finetune_ti"].value == 70
    assert rows["gpu.sami_command"].ratio() == pytest.approx(0.9)


def test_spans_of_a_part_add_up() -> None:
    spans = Spans(torch.device("cpu"))
    for _ in range(3):
        spans.wrapped("part", torch.ones)(10)
    with spans.span("other"):
        pass
    totals = spans.totals_ms()
    assert set(totals) == {"part", "other"}
    assert totals["part"] > 0


def test_optimizer_is_what_its_step_leaves() -> None:
    """Two steps of 20 ms in all: 18 within the optimizer, 15 of these in other parts."""
    totals = {"forward": 8.0, "backward": 5.0, "clip": 2.0, "optimizer": 18.0, "Sami.encoder": 3.0}
    times = step_times(totals, whole=20.0, steps=2)
    assert (times["optimizer"], times["callbacks and data"], times["step"]) == (1.5, 1.0, 10.0)
    assert times["Sami.encoder"] == 1.5


@pytest.mark.slow
def test_tiny_profile_measures_a_part_of_each_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*TINY, "--out", str(tmp_path), "--parts", ",".join(OF_EACH_KIND)]
    assert program.main(given) == 0
    results = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in OF_EACH_KIND}
    assert {name: result.get("error") for name, result in results.items()} == dict.fromkeys(results)
    times = results["dissected_finetune_ti_8"]["ms_a_step"]
    for part in ("forward", "backward", "clip", "optimizer", "callbacks and data", "step"):
        assert times[part] > 0, part
    assert results["dissected_finetune_ti_8"]["kernels"]
    rows = {row["id"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows >= {"gpu.finetune_ti", "gpu.sami_command", "gpu.online_224", "gpu.encoder_ti"}
