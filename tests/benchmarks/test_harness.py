import json
from collections.abc import Callable
from functools import partial
from typing import Literal

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.encoder_forward import speed as encoder_forward
from benchmarks.harness import Options, Row, alternate, parse_options, peak_memory_rise, report
from efficientsam_pl.models.config import NAMED, EncoderConfig
from efficientsam_pl.models.vit import ImageEncoder, build_encoder

SMALL = EncoderConfig(width=32, depth=2, heads=2, image_size=128, neck_channels=16)
KEYS = {"id", "work", "value", "unit", "reference", "ratio", "goal", "better", "met"}


def row(
    value: float,
    reference: float | None,
    goal: float | None,
    better: Literal["lower", "higher"] = "lower",
) -> Row:
    return Row(
        id="a.b", work="w", value=value, unit="s", reference=reference, goal=goal, better=better
    )


def test_ratio_is_ours_over_the_reference_and_judged_against_the_goal() -> None:
    assert row(2.0, 5.0, 0.5).ratio() == 0.4
    assert row(2.0, 5.0, 0.5).met() is True
    assert row(2.0, 5.0, 0.4).met() is True
    assert row(3.0, 5.0, 0.5).met() is False
    assert row(3.0, 2.0, 1.2, "higher").met() is True
    assert row(2.0, 2.0, 1.2, "higher").met() is False


def test_without_a_reference_the_value_is_judged() -> None:
    assert row(1e-5, None, 1e-4).ratio() is None
    assert row(1e-5, None, 1e-4).met() is True
    assert row(2e-4, None, 1e-4).met() is False


def test_without_a_goal_nothing_is_met_or_missed() -> None:
    assert row(1.0, 2.0, None).met() is None
    assert row(1.0, None, None).met() is None


def test_the_last_line_is_the_json_record(capsys: pytest.CaptureFixture[str]) -> None:
    report("name", [row(2.0, 5.0, 0.5)], Options(json=True, quick=False))
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["benchmark"] == "name"
    assert {"python", "torch"} <= set(record["versions"])
    assert record["machine"]["cores"] >= 1
    (only,) = record["rows"]
    assert set(only) == KEYS
    assert (only["ratio"], only["met"], only["goal"]) == (0.4, True, 0.5)


def test_a_table_shows_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    report("name", [row(2.0, 5.0, 0.5), row(1.0, None, None)], Options(json=False, quick=False))
    assert capsys.readouterr().out.count("a.b") == 2 * 2  # in the table and in the list of works


def test_options_are_off_unless_given() -> None:
    assert parse_options("name", "what", []) == Options(json=False, quick=False)
    assert parse_options("name", "what", ["--json", "--quick"]) == Options(json=True, quick=True)


def test_variants_take_turns_and_every_second_round_runs_backwards() -> None:
    order: list[str] = []
    variants = {name: partial(order.append, name) for name in "ab"}
    taken = alternate(variants, rounds=3)
    assert "".join(order) == "abbaab"
    assert all(times.wall >= 0 and times.processor >= 0 for times in taken.values())


def test_time_that_is_up_leaves_one_round() -> None:
    order: list[str] = []
    taken = alternate({"a": partial(order.append, "a")}, rounds=9, seconds=0)
    assert order == ["a"]
    assert taken["a"].rounds == 1


def allocate_64_mib() -> Callable[[], object]:
    return partial(torch.ones, 2**24)  # float32


def test_peak_memory_sees_a_tensor_that_is_freed_again() -> None:
    assert 60 * 2**20 < peak_memory_rise(allocate_64_mib) < 80 * 2**20


def test_peak_memory_leaves_out_what_this_process_once_held() -> None:
    torch.ones(2**28)  # 1 GiB, freed at once
    assert 60 * 2**20 < peak_memory_rise(allocate_64_mib) < 80 * 2**20


@pytest.mark.parametrize("config", [SMALL, NAMED["efficient_sam_ti"].encoder], ids=["small", "ti"])
def test_flop_by_hand_are_those_that_torch_counts(config: EncoderConfig) -> None:
    with torch.device("meta"):
        encoder = build_encoder(config)
        pixels = torch.zeros(1, 3, config.image_size, config.image_size)
    assert isinstance(encoder, ImageEncoder)
    with FlopCounterMode(display=False) as counter:
        encoder_forward.released_forward(encoder, pixels)
    assert encoder_forward.forward_flop(config) == counter.get_total_flops()


def test_a_small_encoder_gives_every_row_and_equals_the_released_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoder_forward, "peak_memory_rise", lambda prepare: 2**20)
    rows = {row.id: row for row in encoder_forward.measure(SMALL, rounds=1, seconds=0)}
    assert {name.removeprefix("encoder_forward.") for name in rows} == {
        "time",
        "processor_time",
        "peak_memory",
        "difference",
        "floor",
    }
    assert rows["encoder_forward.difference"].met() is True
    assert rows["encoder_forward.floor"].met() is None
