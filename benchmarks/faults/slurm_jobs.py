"""Control real SLURM jobs on the local cluster of slurm/local_cluster.sh: submit, watch, kill.

Run `eval "$(slurm/local_cluster.sh up)"` first. There is no accounting: a job's state is read from
`scontrol show job`, until an hour after its end.
"""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SLURM = Path(__file__).resolve().parents[2] / "slurm"
ENDED = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}
)
_POLL_S = 0.5


@dataclass(frozen=True)
class Job:
    """A submitted job. A task of an array has an id such as 57_3."""

    id: str

    def fields(self) -> dict[str, str]:
        """Fields of `scontrol show job`, by name."""
        text = slurm("scontrol", "show", "job", "--oneliner", self.id)
        return dict(re.findall(r"(\S+?)=(\S*)", text.splitlines()[0]))

    def state(self) -> str:
        """State: PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, CANCELLED, TIMEOUT, ..."""
        return self.fields()["JobState"]

    def exit_code(self) -> int:
        """Exit code of the batch script; 128 + the signal's number if it was killed."""
        code, number = map(int, self.fields()["ExitCode"].split(":"))
        return 128 + number if number else code

    def restarts(self) -> int:
        """Count the requeues."""
        return int(self.fields()["Restarts"])

    def wait(self, timeout_s: float) -> int:
        """Wait for the job's end, over requeues.

        Returns:
            The exit code.

        Raises:
            TimeoutError: It has not ended; it is cancelled, and the message has its log.
        """
        self.wait_for(ENDED, timeout_s)
        return self.exit_code()

    def wait_for(self, states: frozenset[str], timeout_s: float) -> str:
        """Wait until the job is in one of these states, and return the state.

        Raises:
            TimeoutError: As for `wait`.
        """
        until = time.monotonic() + timeout_s
        while (state := self.state()) not in states:
            if time.monotonic() > until:
                self.cancel()
                raise TimeoutError(
                    f"job {self.id} is {state} after {timeout_s:.0f} s\n{self.log()}"
                )
            time.sleep(_POLL_S)
        return state

    def signal(self, name: str) -> None:
        """Send a signal to every process of the job's steps, as SLURM does before a time limit."""
        slurm("scancel", f"--signal={name}", self.id)

    def requeue(self) -> None:
        """Requeue the job, as an operator or a preemption does."""
        slurm("scontrol", "requeue", self.id)

    def cancel(self) -> None:
        """Cancel the job."""
        slurm("scancel", self.id)

    def log(self) -> str:
        """Read the job's output over all starts; empty before the first."""
        path = Path(self.fields()["StdOut"])
        return path.read_text() if path.exists() else ""

    def task(self, number: int) -> "Job":
        """Task of an array."""
        return Job(f"{self.id}_{number}")

    def rank_pids(self) -> dict[int, int]:
        """Process ids of the ranks on this machine, without data workers, srun and batch script."""
        job = self.fields()["JobId"]
        return {
            int(environ["SLURM_PROCID"]): pid
            for pid, environ in _processes()
            if environ.get("SLURM_JOB_ID") == job
            and "SLURM_STEP_ID" in environ
            and environ.get("SLURM_TASK_PID") == str(pid)
        }

    def kill_rank(self, rank: int) -> None:
        """Kill a rank by SIGKILL, as the kernel does when memory is exhausted."""
        os.kill(self.rank_pids()[rank], signal.SIGKILL)


def submit(
    template: str,
    arguments: Sequence[str],
    *,
    folder: Path,
    nodes: int = 2,
    time_limit_min: int = 10,
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> Job:
    """Submit a template of slurm/ with one task per node.

    Args:
        template: finetune, pretrain, ...: the file's name without .sbatch.
        arguments: Arguments of the template: `-c FILE`, `key=value`.
        folder: Working directory, which receives the output and `runs/`.
        environment: Added to this process's environment.
        options: Further options of sbatch, such as --array=0-2.
    """
    command = ["sbatch", "--parsable", f"--nodes={nodes}", "--ntasks-per-node=1"]
    command += ["--cpus-per-task=1", "--gpus-per-node=0", f"--time={time_limit_min}", *options]
    command += [str(SLURM / f"{template}.sbatch"), *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return Job(done.stdout.strip())


def kill(pid: int) -> None:
    """Kill a process by SIGKILL, if it still exists."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_node(name: str) -> None:
    """Kill a node's daemon and all its processes, as a power cut does."""
    daemon = int(Path(_setting("SlurmdPidFile", name)).read_text())
    kill(daemon)  # first, or it would report the end of the others
    for pid in _step_daemons(name):
        kill(pid)
    conf = os.environ["SLURM_CONF"]
    for pid, environ in _processes():
        if environ.get("SLURMD_NODENAME") == name and environ.get("SLURM_CONF") == conf:
            kill(pid)
    while Path(f"/proc/{daemon}/exe").exists():  # it dies when it is next scheduled
        time.sleep(_POLL_S / 10)


def revive_node(name: str) -> None:
    """Restart a killed node's daemon and wait until SLURM uses it."""
    cluster = str(Path(os.environ["SLURM_CONF"]).parent)
    subprocess.run(
        [str(SLURM / "local_cluster.sh"), "node", name, cluster], check=True, timeout=120
    )


def slurm(*command: str) -> str:
    """Run a SLURM command and return its output.

    Raises:
        RuntimeError: It failed; the message has its error output.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _setting(key: str, node: str) -> str:
    conf = Path(os.environ["SLURM_CONF"]).read_text()
    match = re.search(rf"^{key}=(.*)$", conf, re.MULTILINE)
    if match is None:
        raise KeyError(key)
    return match[1].replace("%n", node)


def _step_daemons(node: str) -> list[int]:
    """Find step daemons by the sockets that they open in the node's spool folder."""
    prefix = f"{_setting('SlurmdSpoolDir', node)}/{node}_"
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    sockets = {f"socket:[{line[6]}]" for line in lines if line[-1].startswith(prefix)}
    return [pid for pid in _pids() if sockets & set(_open_files(pid))]


def _open_files(pid: int) -> list[str]:
    try:
        return [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # it has ended meanwhile, or belongs to another user
        return []


def _processes() -> Iterator[tuple[int, dict[str, str]]]:
    """Yield every readable process on this machine with its initial environment."""
    for pid in _pids():
        try:
            text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        yield pid, dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
