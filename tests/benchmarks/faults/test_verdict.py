"""Five samples, two a step, ten steps: four epochs whose borders lie within steps."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.faults.verdict import Consumed, RunResult, Verdict, compare, judge, read_trace
from efficientsam_pl.checkpoints.layout import (
    PLAIN,
    VALUES,
    file_records,
    partial_path,
    publish_checkpoint,
    step_folder,
    write_manifest,
    write_pointer,
)

SAMPLES = "abcde"
Lines = list[Consumed]


def undisturbed() -> Lines:
    """Two ranks, a sample each: a, b | c, d | e, a | b, c | d, e | ..."""
    return [
        Consumed(step, rank, (SAMPLES[(2 * step + rank) % 5],), 1 / (1 + 2 * step + rank))
        for step in range(10)
        for rank in range(2)
    ]


def left(lines: Lines, **weights: torch.Tensor) -> RunResult:
    return RunResult(tuple(lines), {"w": torch.arange(4.0), "v": torch.ones(2, 3)} | weights)


def judged(lines: Lines, tolerance: float | None = None) -> Verdict:
    return judge(left(lines), left(undisturbed()), tolerance)


def used(lines: Lines, step: int, rank: int, key: str) -> None:
    number = next(n for n, line in enumerate(lines) if (line.step, line.rank) == (step, rank))
    lines[number] = replace(lines[number], keys=(key,))


def test_the_same_run_is_accepted_bit_for_bit() -> None:
    verdict = judged(undisturbed())
    assert verdict.accepted()
    assert verdict.bit_equal
    assert (verdict.steps, verdict.lost, verdict.doubled, verdict.moved) == (10, 0, 0, 0)
    assert verdict.worst() == 0


def test_a_sample_used_in_anothers_place_is_doubled_and_the_other_lost() -> None:
    lines = undisturbed()
    used(lines, 1, 0, "d")  # c, d becomes d, d
    verdict = judged(lines)
    assert (verdict.lost, verdict.doubled, verdict.moved) == (1, 1, 0)
    assert not verdict.accepted()
    assert any("the reference did not use d" in sentence for sentence in verdict.problems)
    assert any("the reference used c" in sentence for sentence in verdict.problems)


@pytest.mark.parametrize("step", [0, 4, 9])
def test_a_step_made_twice_doubles_its_samples(step: int) -> None:
    again = [line for line in undisturbed() if line.step == step]
    verdict = judged(undisturbed() + again)
    assert (verdict.doubled, verdict.lost) == (2, 0)
    assert not verdict.accepted()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("step", [0, 4, 9])
def test_a_micro_batch_left_out_is_lost(step: int, rank: int) -> None:
    lines = [line for line in undisturbed() if (line.step, line.rank) != (step, rank)]
    verdict = judged(lines)
    assert (verdict.lost, verdict.doubled) == (1, 0)
    assert not verdict.accepted()


def test_steps_that_changed_places_keep_their_samples_but_are_not_the_reference() -> None:
    swapped = {2: 3, 3: 2}
    lines = [replace(line, step=swapped.get(line.step, line.step)) for line in undisturbed()]
    verdict = judged(lines, tolerance=1.0)
    assert (verdict.lost, verdict.doubled, verdict.moved) == (0, 0, 4)
    assert not verdict.accepted()


def test_a_run_that_ended_early_has_lost_its_last_steps() -> None:
    verdict = judged([line for line in undisturbed() if line.step < 7])
    assert verdict.lost == 6
    assert "steps 0 to 6, the reference's 0 to 9" in verdict.problems


def test_what_is_wrong_in_the_reference_too_is_noticed() -> None:
    lines = undisturbed()
    used(lines, 0, 1, "e")  # a, e, c, d, e | a ...: the first epoch has e twice and no b
    verdict = judge(left(lines), left(lines), None)
    assert (verdict.lost, verdict.doubled) == (1, 1)
    assert any("an epoch lacked b" in sentence for sentence in verdict.problems)
    assert any("an epoch used twice e" in sentence for sentence in verdict.problems)


def test_the_last_bit_of_a_loss_counts() -> None:
    lines = undisturbed()
    nudged = math.nextafter(lines[7].loss, 1)
    lines[7] = replace(lines[7], loss=nudged)
    strict, lenient = judged(lines), judged(lines, tolerance=1e-12)
    assert not strict.accepted()
    assert strict.loss_difference == nudged - undisturbed()[7].loss > 0
    assert lenient.accepted()
    assert not lenient.bit_equal


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_never_within_a_tolerance(value: float) -> None:
    lines = undisturbed()
    lines[3] = replace(lines[3], loss=value)
    verdict = judged(lines, tolerance=1e9)
    assert verdict.loss_difference == math.inf
    assert not verdict.accepted()


def test_one_changed_weight_counts() -> None:
    w = torch.arange(4.0)
    w[2] += 2**-22
    changed = left(undisturbed(), w=w)
    strict = judge(changed, left(undisturbed()), None)
    assert strict.state_difference == 2**-22
    assert strict.problems == ("w differs by 2.38e-07, allowed is 0",)
    assert judge(changed, left(undisturbed()), 1e-6).accepted()


@pytest.mark.parametrize(
    "weights",
    [
        {"w": torch.tensor([0.0, 1.0, math.nan, 3.0])},
        {"w": torch.arange(5.0)},
        {"w": torch.arange(4.0).bfloat16()},
        {"another": torch.ones(1)},
    ],
)
def test_weights_of_another_kind_are_never_within_a_tolerance(
    weights: dict[str, torch.Tensor],
) -> None:
    verdict = judge(left(undisturbed(), **weights), left(undisturbed()), 1e9)
    assert verdict.state_difference == math.inf
    assert not verdict.accepted()


def test_one_rank_instead_of_two_is_compared_by_the_means_of_its_steps() -> None:
    pairs = [undisturbed()[n : n + 2] for n in range(0, 20, 2)]
    alone = [
        Consumed(a.step, 0, (*a.keys, *b.keys), (a.loss + b.loss) / 2 + 1e-4 * (a.step == 6))
        for a, b in pairs
    ]
    verdict = judged(alone, tolerance=2e-4)
    assert verdict.accepted()
    assert not verdict.bit_equal
    assert verdict.loss_difference == pytest.approx(1e-4)
    assert not judged(alone, tolerance=5e-5).accepted()


def test_ranks_that_swap_their_micro_batches_make_the_same_step() -> None:
    swapped = [replace(line, rank=1 - line.rank) for line in undisturbed()]
    assert judged(swapped).accepted()


def written(folder: Path, lines: Lines, change: Callable[[str], str] = str) -> Path:
    text = "".join(json.dumps(vars(line)) + "\n" for line in lines)
    (folder / "consumed.jsonl").write_text(change(text))
    return folder


def test_the_trace_is_read_by_step_and_rank_whatever_the_order_of_its_lines(tmp_path: Path) -> None:
    assert read_trace(written(tmp_path, undisturbed()[::-1])) == undisturbed()


def test_an_incomplete_line_is_reported_by_its_number(tmp_path: Path) -> None:
    written(tmp_path, undisturbed(), lambda text: text[:-20])
    with pytest.raises(ValueError, match="line 20 is incomplete"):
        read_trace(tmp_path)


def test_a_run_without_a_trace_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.trace=true"):
        read_trace(tmp_path)


def finished(run: Path, lines: Lines, state: dict[str, torch.Tensor]) -> Path:
    """A run's folder with a trace and a whole checkpoint."""
    folder = step_folder(run / "checkpoints", 10)
    partial = partial_path(folder)
    partial.mkdir(parents=True)
    torch.save(state, partial / PLAIN)
    torch.save({"global_step": 10}, partial / VALUES)
    files = file_records([partial / PLAIN, partial / VALUES], partial)
    write_manifest(partial, "plain", 10, VALUES, files)
    publish_checkpoint(partial, folder)
    write_pointer(run / "latest", folder)
    return written(run, lines)


def test_two_folders_are_compared_from_their_files_alone(tmp_path: Path) -> None:
    weight, moment = torch.randn(3, 2), torch.zeros(3, 2)
    state = {"model.w": weight, "optimizer.model.w.exp_avg": moment}
    reference = finished(tmp_path / "reference", undisturbed(), state)
    same = finished(tmp_path / "same", undisturbed(), state)
    assert compare(same, reference, None).accepted()
    nudged = state | {"optimizer.model.w.exp_avg": moment + 0.25}
    other = finished(tmp_path / "other", undisturbed(), nudged)
    verdict = compare(other, reference, None)
    assert verdict.problems == ("optimizer.model.w.exp_avg differs by 0.25, allowed is 0",)


def test_a_run_without_a_checkpoint_is_reported(tmp_path: Path) -> None:
    written(tmp_path, undisturbed())
    with pytest.raises(ValueError, match="has no checkpoint"):
        compare(tmp_path, tmp_path, None)
