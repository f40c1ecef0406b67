"""Drives real SLURM jobs on the local cluster of slurm/local_cluster.sh: submit, watch, break.

`eval "$(slurm/local_cluster.sh up)"` first. There is no accounting: a job's state is what
`scontrol show job` says of it, for an hour after its end.
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
    """A job that was submitted. An array's task has the id 57_3."""

    id: str

    def fields(self) -> dict[str, str]:
        """What `scontrol show job` says, by name."""
        text = slurm("scontrol", "show", "job", "--oneliner", self.id)
        return dict(re.findall(r"(\S+?)=(\S*)", text.splitlines()[0]))

    def state(self) -> str:
        """PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, CANCELLED, TIMEOUT, NODE_FAIL, ..."""
        return self.fields()["JobState"]

    def exit_code(self) -> int:
        """The batch script's code, 128 + the signal's number if one ended it."""
        code, number = map(int, self.fields()["ExitCode"].split(":"))
        return 128 + number if number else code

    def restarts(self) -> int:
        """How often it was requeued."""
        return int(self.fields()["Restarts"])

    def wait(self, timeout_s: float) -> int:
        """Waits for its end, over requeues.

        Returns:
            The exit code.

        Raises:
            TimeoutError: It has not ended. It is cancelled, its log is in the message.
        """
        self.wait_for(ENDED, timeout_s)
        return self.exit_code()

    def wait_for(self, states: frozenset[str], timeout_s: float) -> str:
        """Waits until it is in one of these states, and says in which.

        Raises:
            TimeoutError: As for wait.
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
        """Sends it to every process of its steps, as SLURM does before a time limit: USR1."""
        slurm("scancel", f"--signal={name}", self.id)

    def requeue(self) -> None:
        """As a person or a preemption does."""
        slurm("scontrol", "requeue", self.id)

    def cancel(self) -> None:
        """Ends it for good."""
        slurm("scancel", self.id)

    def log(self) -> str:
        """All it has written, over requeues; empty before its start."""
        path = Path(self.fields()["StdOut"])
        return path.read_text() if path.exists() else ""

    def task(self, number: int) -> "Job":
        """One task of an array."""
        return Job(f"{self.id}_{number}")

    def rank_pids(self) -> dict[int, int]:
        """The process of each rank that runs on this machine; neither its data workers, srun nor
        the batch script."""
        job = self.fields()["JobId"]
        return {
            int(environ["SLURM_PROCID"]): pid
            for pid, environ in _processes()
            if environ.get("SLURM_JOB_ID") == job
            and "SLURM_STEP_ID" in environ
            and environ.get("SLURM_TASK_PID") == str(pid)
        }

    def kill_rank(self, rank: int) -> None:
        """Ends a rank as the kernel does that is out of memory."""
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
    """Hands a template of slurm/ to sbatch, a task a node.

    Args:
        template: finetune, pretrain, ...: the file's name without .sbatch.
        arguments: What follows the template: `-c FILE`, `key=value`.
        folder: Where it is submitted; output and `runs/` come to lie there.
        environment: Added to this process's.
        options: More of sbatch's, --array=0-2 say.
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
    """Ends a process by kill -9, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_node(name: str) -> None:
    """Ends a node's daemon and everything that it runs, as a power cut does."""
    daemon = int(Path(_setting("SlurmdPidFile", name)).read_text())
    kill(daemon)  # first, or it would tell of the others' end
    for pid in _step_daemons(name):
        kill(pid)
    conf = os.environ["SLURM_CONF"]
    for pid, environ in _processes():
        if environ.get("SLURMD_NODENAME") == name and environ.get("SLURM_CONF") == conf:
            kill(pid)
    while Path(f"/proc/{daemon}/exe").exists():  # it dies when it is next scheduled
        time.sleep(_POLL_S / 10)


def revive_node(name: str) -> None:
    """Starts a killed node's daemon again and waits until SLURM uses it."""
    cluster = str(Path(os.environ["SLURM_CONF"]).parent)
    subprocess.run(
        [str(SLURM / "local_cluster.sh"), "node", name, cluster], check=True, timeout=120
    )


def slurm(*command: str) -> str:
    """Runs a command of SLURM's.

    Raises:
        RuntimeError: It failed; with what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _setting(key: str, node: str) -> str:
    conf = Path(os.environ["SLURM_CONF"]).read_text()
    found = re.search(rf"^{key}=(.*)$", conf, re.MULTILINE)
    if found is None:
        raise KeyError(key)
    return found[1].replace("%n", node)


def _step_daemons(node: str) -> list[int]:
    """They listen on sockets in the node's spool folder, named after it."""
    prefix = f"{_setting('SlurmdSpoolDir', node)}/{node}_"
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    sockets = {f"socket:[{line[6]}]" for line in lines if line[-1].startswith(prefix)}
    return [pid for pid in _pids() if sockets & set(_open_files(pid))]


def _open_files(pid: int) -> list[str]:
    try:
        return [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # it has ended meanwhile, or is not ours
        return []


def _processes() -> Iterator[tuple[int, dict[str, str]]]:
    """Every process on this machine that may be read, with the environment it began with."""
    for pid in _pids():
        try:
            text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        yield pid, dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
