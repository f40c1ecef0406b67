"""Where a trial takes place: a run's folder, its jobs, and waiting for a step to strike at."""

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
_DELAY_S = 0.25  # at most, after the step that was waited for: within the next one or two


class Hung(Exception):  # noqa: N818
    """A trial that is not over at its deadline."""


class Missed(Exception):  # noqa: N818
    """A run that has ended before its fault could come, or has not done what it should."""


@dataclass(frozen=True)
class Pace:
    """When a run's first step was made and when its job had ended, from the submission, seconds."""

    first_step_s: float
    seconds: float

    def training_s(self) -> float:
        """From the first step to the end."""
        return self.seconds - self.first_step_s


@dataclass
class Site:
    """One trial's place."""

    toy: Toy
    setting: Setting
    folder: Path  # `run` is the run's, `jobs` has the jobs' output
    draw: random.Random
    until: float  # time.monotonic()
    pace: Pace  # of an undisturbed run
    jobs: list[Job] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """The run's folder, which all jobs of the trial share."""
        return self.folder / "run"

    def submit(
        self, setting: Setting | None = None, *overrides: str, minutes: int = 10, **options: str
    ) -> Job:
        """Starts a job on the run's folder.

        Args:
            setting: None: the trial's own.
            overrides: More key=value.
            minutes: The job's time limit.
            options: More of sbatch's, by name.
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
        """Waits for a step drawn between two, and a little longer.

        Returns:
            The last step that was seen. Steps at the end are left out: the fault is to hit a run
            that still goes on.

        Raises:
            Missed: The job has ended before.
            Hung: The step does not come.
        """
        self.reach(job, self.draw.randint(earliest, latest))
        time.sleep(self.draw.uniform(0, _DELAY_S))
        return last_step(self.run)

    def reach(self, job: Job, step: int) -> None:
        """Waits until a step is made. Raises as `strike` does."""
        looked = time.monotonic()
        while last_step(self.run) < step:
            time.sleep(_POLL_S)
            if time.monotonic() - looked > _STATE_POLL_S:
                looked = time.monotonic()
                state = job.state()
                if state in ENDED:
                    raise Missed(f"job {job.id} is {state} before step {step}\n{job.log()}")
                if looked > self.until:
                    raise Hung(f"job {job.id} is {state}, step {step} has not come")

    def saving(self, job: Job) -> bool:
        """Waits, through a few steps at most, for a checkpoint that is being written."""
        first = last_step(self.run)
        while last_step(self.run) < min(first + 8, STEPS - 1):
            if any((self.run / "checkpoints").glob(".step-*.part")):
                return True
            if time.monotonic() > self.until:
                raise Hung(f"job {job.id} is {job.state()}, no further step has come")
            time.sleep(0.001)
        return False

    def finish(self, job: Job) -> None:
        """Waits for the job's end.

        Raises:
            Hung: It does not come.
            Missed: It is not the end that it should be.
        """
        try:
            code = job.wait(max(1.0, self.until - time.monotonic()))
        except TimeoutError as error:
            raise Hung(str(error)) from error
        state = job.state()
        if code != 0 or state != "COMPLETED":
            raise Missed(f"job {job.id} is {state} with exit code {code}")

    def stop(self, job: Job) -> str:
        """Cancels a job for good: as a person does, or after its ranks have died.

        Returns:
            How.

        Raises:
            Missed: It came back, as only a requeued job may.
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

    def told(self, sentence: str) -> None:
        """Makes sure that one of the jobs has said something.

        Raises:
            Missed: None has.
        """
        if not any(sentence in job.log() for job in self.jobs):
            raise Missed(f"no job has said {sentence!r}")

    def restarts(self) -> int:
        """Starts after the first, of all jobs."""
        return len(self.jobs) - 1 + sum(job.restarts() for job in self.jobs)


def last_step(run: Path) -> int:
    """The newest step in the trace; -1 where there is none."""
    try:
        text = (run / "consumed.jsonl").read_text()
    except FileNotFoundError:
        return -1
    whole = text[: text.rfind("\n") + 1].splitlines()
    return max((_step_of(line) for line in whole[-8:]), default=-1)


def environment() -> Mapping[str, str]:
    """Of a job: this checkout, this python, one thread a rank."""
    return {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "EFFICIENTSAM_PYTHON": sys.executable,
        "PATH": os.environ["PATH"],
    }


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    """A disk of so many MiB in the place of a folder; what lies on it at the end stays there.

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
        # lazily: a process of a hung trial may still have a file open there
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()
    kept.rename(folder)


def _step_of(line: str) -> int:
    return int(line.split('"step": ', 1)[1].split(",", 1)[0])
