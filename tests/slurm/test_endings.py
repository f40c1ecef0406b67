"""Exits of a program that a job's script accepts, and those after which it restarts."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.faults.slurm_jobs import Job, submit

Ending = Callable[[Sequence[str]], Job]
DEADLINE_S = 120.0
# A start ends with the next of $CODES; 1:4 is one that has saved step 4 before it fails, 75:requeue
# one whose store stays away
PROGRAM = """\
#!/usr/bin/env bash
read -r -a codes <<<"$CODES"
IFS=: read -r code saved <<<"${codes[${SLURM_RESTART_COUNT:-0}]}"
if [ "$SLURM_PROCID" = 0 ]; then
    if [ "$saved" = requeue ]; then
        echo 1 >"$EFFICIENTSAM_JOB_STATE/requeue"
    elif [ -n "$saved" ]; then
        echo "$saved" >"$EFFICIENTSAM_JOB_STATE/progress"
    fi
    if [ "$code" != 1 ]; then echo "$code" >"$EFFICIENTSAM_JOB_STATE/exit"; fi
    exit "$code"
fi
[ "$code" = 0 ] || sleep 100  # until srun ends it
"""


@pytest.fixture
def suffix(tmp_path: Path) -> Ending:
    """ending(codes): a two-node job whose starts end with these, over; see PROGRAM."""

    def run(codes: Sequence[str]) -> Job:
        program = tmp_path / "program"
        program.write_text(PROGRAM)
        program.chmod(0o755)
        given = {"EFFICIENTSAM_PYTHON": str(program), "CODES": " ".join(codes)}
        job = submit("finetune", [], folder=tmp_path, environment=given)
        job.wait(DEADLINE_S)
        return job

    return run


@pytest.mark.parametrize("code", [0, 2, 75, 130])
def test_end_that_is_meant_is_left(code: int, suffix: Ending) -> None:
    """Though srun's own code is that of the other rank, which it kills."""
    job = suffix([str(code)])
    assert (job.exit_code(), job.restarts()) == (code, 0)


def test_job_that_saves_nothing_three_times_in_a_row_stays_down(
    suffix: Ending,
) -> None:
    job = suffix(["1", "1", "1:4", "1", "1", "1", "0"])
    assert job.restarts() == 5
    assert job.state() == "FAILED"
    assert job.log().count("is requeued") == 5
    assert "has failed 3 times in a row and saved nothing" in job.log()


def test_job_whose_store_stays_away_is_requeued_a_few_times(suffix: Ending) -> None:
    job = suffix(["75:requeue", "75:requeue", "0"])
    assert (job.exit_code(), job.restarts()) == (0, 2)


def test_failure_is_followed_by_another_start(suffix: Ending) -> None:
    job = suffix(["1", "0"])
    assert (job.exit_code(), job.restarts(), job.state()) == (0, 1, "COMPLETED")
