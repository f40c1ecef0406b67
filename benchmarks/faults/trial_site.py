"""State of a trial: the run's folder, its jobs, and waiting for the step of the fault."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.slurm_jobs import ENDED, Job, kill, submit
from benchmarks.faults.toy_runs import STEPS, Setting, Toy

ROOT = Path(__file__).resolve().parents[2]
_POLL_S, _STATE_POLL_S = 0.02, 2.0
_DELAY_S = 0.25  # maximum after the awaited step: within the next one or two


class Hung(Exception):  # noqa: N818
    """A trial did not finish by its deadline."""


class Missed(Exception):  # noqa: N818
    """A run ended before its fault, or did not behave as expected."""


@dataclass(frozen=True)
class Pace:
    """Time of a run's first step and of its job's end, in seconds since submission."""

    first_step_s: float
    seconds: float

    def training_s(self) -> float:
        """Time from the first step to the end."""
        return self.seconds - self.first_step_s


@dataclass
class Site:
    """Folder, jobs and deadline of a trial."""

    toy: Toy
    setting: Setting
    folder: Path  # has the run in `run` and the jobs' output in `jobs`
    draw: random.Random
    until: float  # time.monotonic()
    pace: Pace  # of an uninterrupted run
    jobs: list[Job] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """Folder of the run, shared by all jobs of the trial."""
        return self.folder / "run"

    def submit(
        self, setting: Setting | None = None, *overrides: str, minutes: int = 10, **options: str
    ) -> Job:
        """Submit a job for the run's folder.

        Args:
            setting: None: the trial's.
            overrides: Further key=value.
            minutes: The job's time limit.
            options: Further options of sbatch, by name.
        """
        setting = setting or self.setting
        where = self.folder / "jobs"
        where.mkdir(parents=True, exist_ok=True)
        job = submit(
            setting.stage,
            [*self.toy.arguments(setting, self.run), *overrides],
            folder=where,
            nodes=setting.nodes,
            time_limit_min=minutes,
            environment=environment(),
            options=[f"--{name}={value}" for name, value in options.items()],
        )
        self.jobs.append(job)
        return job

    def strike(self, job: Job, earliest: int = 1, latest: int = STEPS - 6) -> int:
        """Wait for a random step between two, and a little longer.

        Returns:
            The last step in the trace. By default the last steps are excluded, so that the fault
            hits a running job.

        Raises:
            Missed: The job ended before the step.
            Hung: The step was not reached by the deadline.
        """
        self.reach(job, self.draw.randint(earliest, latest))
        time.sleep(self.draw.uniform(0, _DELAY_S))
        return last_step(self.run)

    def reach(self, job: Job, step: int) -> None:
        """Wait until a step is reached. Raises as `strike` does."""
        checked = time.monotonic()
        while last_step(self.run) < step:
            time.sleep(_POLL_S)
            if time.monotonic() - checked > _STATE_POLL_S:
                checked = time.monotonic()
                state = job.state()
                if state in ENDED:
                    raise Missed(f"job {job.id} is {state} before step {step}\n{job.log()}")
                if checked > self.until:
                    raise Hung(f"job {job.id} is {state}, step {step} was not reached")

    def saving(self, job: Job) -> bool:
        """Wait for a checkpoint that is being written, for a few steps at most."""
        first = last_step(self.run)
        while last_step(self.run) < min(first + 8, STEPS - 1):
            if any((self.run / "checkpoints").glob(".step-*.part")):
                return True
            if time.monotonic() > self.until:
                raise Hung(f"job {job.id} is {job.state()}, no further step was reached")
            time.sleep(0.001)
        return False

    def finish(self, job: Job) -> None:
        """Wait for the job's end.

        Raises:
            Hung: The job did not end by the deadline.
            Missed: The job failed.
        """
        try:
            code = job.wait(max(1.0, self.until - time.monotonic()))
        except TimeoutError as error:
            raise Hung(str(error)) from error
        state = job.state()
        if code != 0 or state != "COMPLETED":
            raise Missed(f"job {job.id} is {state} with exit code {code}")

    def stop(self, job: Job) -> str:
        """Cancel a job, either running or after killing its ranks.

        Returns:
            Which of the two.

        Raises:
            Missed: The job was restarted.
        """
        how = self.draw.choice(["cancelled", "killed"])
        if how == "killed":
            for pid in job.rank_pids().values():
                kill(pid)
        job.cancel()
        job.wait_for(ENDED, max(1.0, self.until - time.monotonic()))
        time.sleep(1.0)
        if (state := job.state()) not in ENDED:
            raise Missed(f"job {job.id} was cancelled, but is {state}")
        return how

    def require_in_logs(self, text: str) -> None:
        """Check that the output of a job contains a text.

        Raises:
            Missed: It does not.
        """
        if not any(text in job.log() for job in self.jobs):
            raise Missed(f"no job has logged {text!r}")

    def restarts(self) -> int:
        """Count the starts after the first, of all jobs."""
        return len(self.jobs) - 1 + sum(job.restarts() for job in self.jobs)


def last_step(run: Path) -> int:
    """Last step in the trace; -1 if there is none."""
    try:
        text = (run / "consumed.jsonl").read_text()
    except FileNotFoundError:
        return -1
    whole = text[: text.rfind("\n") + 1].splitlines()
    return max((_step_of(line) for line in whole[-8:]), default=-1)


def environment() -> Mapping[str, str]:
    """Environment of jobs: this checkout, this Python, one thread per rank."""
    return {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "EFFICIENTSAM_PYTHON": sys.executable,
        "PATH": os.environ["PATH"],
    }


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    """Mount a disk of some MiB in place of a folder; its content stays after unmounting.

    Needs root.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "faults", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield
        kept = folder.with_name(f"{folder.name}.kept")
        subprocess.run(["cp", "-a", str(folder), str(kept)], check=True)
    finally:
        # lazily, as a process of a hung trial may still have a file open
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()
    kept.rename(folder)


def _step_of(line: str) -> int:
    return int(line.split('"step": ', 1)[1].split(",", 1)[0])
