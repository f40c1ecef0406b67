"""Real ranks over gloo that are signalled, killed and stopped: all end soon, none is left."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # real ranks, started for each case

SCRIPT = Path(__file__).with_name("disturbed_run.py")
MANY = 100_000  # steps, more than a test waits for
START_S, END_S = 120, 10

Left = Callable[[list[int], float], list[int]]


@dataclass
class Ranks:
    """Processes of one run, started as torchrun starts them unless `command` says otherwise."""

    folder: Path
    processes: list[subprocess.Popen[str]]

    def diary(self, rank: int) -> list[dict[str, Any]]:
        path = self.folder / f"rank-{rank}.jsonl"
        if not path.exists():
            return []
        lines = path.read_text().split("\n")[:-1]  # what follows the last break is being written
        return [json.loads(line) for line in lines]

    def told(self, rank: int, key: str) -> list[Any]:
        return [entry[key] for entry in self.diary(rank) if key in entry]

    def wait_for_step(self, step: int, ranks: tuple[int, ...] = (0, 1)) -> None:
        until = time.monotonic() + START_S
        while not all(step in self.told(rank, "step") for rank in ranks):
            assert time.monotonic() < until, "the ranks do not train"
            assert all(one.poll() is None for one in self.processes), "a rank has ended"
            time.sleep(0.02)

    def pids(self, rank: int) -> list[int]:
        """Its process and its data workers'."""
        first = self.diary(rank)[0]
        return [first["process"], *first["workers"]]

    def ends(self, within_s: float = END_S) -> tuple[list[int], list[str]]:
        """Exit codes and what is on stderr."""
        until = time.monotonic() + within_s
        for process in self.processes:
            process.wait(max(0.1, until - time.monotonic()))
        errors = [path.read_text() for path in sorted(self.folder.glob("stderr-*"))]
        return [process.returncode for process in self.processes], errors


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """started(way, steps, accumulated=1, world=2, command=[...])."""
    runs: list[Ranks] = []

    def start(
        way: str,
        steps: int = MANY,
        accumulated: int = 1,
        world: int = 2,
        command: tuple[str, ...] | None = None,
    ) -> Ranks:
        common = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(SCRIPT.parents[2]),
            "RANKS": str(world),
            "EFFICIENTSAM_JOB_STATE": str(tmp_path / "state"),
        }
        met = {
            "TORCHELASTIC_RUN_ID": "test",
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "GROUP_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        processes = []
        for rank in range(world if command is None else 1):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (tmp_path / f"stderr-{rank}").open("w") as errors:
                processes.append(
                    subprocess.Popen(
                        [
                            *((sys.executable,) if command is None else command),
                            str(SCRIPT),
                            way,
                            str(tmp_path),
                            str(steps),
                            str(accumulated),
                        ],
                        env=common | met | own if command is None else common,
                        stderr=errors,
                        stdout=subprocess.DEVNULL,
                        text=True,
                        start_new_session=True,
                    )
                )
        runs.append(Ranks(tmp_path, processes))
        return runs[-1]

    yield start
    for run in runs:
        pids = [one["process"] for rank in (0, 1) for one in run.diary(rank)[:1]]
        for process in run.processes:
            process.kill()
            process.wait()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("number", "accumulated", "everywhere"),
    [(signal.SIGUSR1, 1, False), (signal.SIGTERM, 2, True), (signal.SIGINT, 1, True)],
)
def test_ranks_save_at_the_same_step_whoever_was_told(
    started: Callable[..., Ranks],
    left: Left,
    number: signal.Signals,
    accumulated: int,
    everywhere: bool,
) -> None:
    """As SLURM signals: every process of a step, data workers too, or as it misses some."""
    run = started("plain", accumulated=accumulated)
    run.wait_for_step(3)
    noticed = max(run.told(1, "step"))
    told = [pid for rank in (0, 1) for pid in run.pids(rank)] if everywhere else run.pids(1)[:1]
    for pid in told:
        os.kill(pid, number)
    codes, errors = run.ends(within_s=30)
    code = 130 if number is signal.SIGINT else 75
    assert codes == [code, code], errors
    [saved], [other] = run.told(0, "saved"), run.told(1, "saved")
    assert saved == other == max(run.told(0, "step"))
    assert run.told(0, "step").count(saved) == 1  # no micro-batch of the next step has run
    assert noticed <= saved <= noticed + 4  # the step under way, one more, and the test's delay
    why = "Ctrl-C; the same command continues" if number is signal.SIGINT else number.name
    line = f"efficientsam: saved step {saved} to {run.folder} and stopped, since it got {why}\n"
    assert errors[0].endswith(line)
    assert "Traceback" not in errors[0] + errors[1]
    assert "efficientsam:" not in errors[1]
    assert (run.folder / "state/exit").read_text() == f"{code}\n"
    assert left(run.pids(0) + run.pids(1), END_S) == []


def test_lightning_installs_no_handler_and_what_was_asked_before_counts_at_the_first_step(
    started: Callable[..., Ranks],
) -> None:
    run = started("asked_before", world=1)
    codes, errors = run.ends(START_S)
    assert codes == [75], errors
    assert run.told(0, "saved") == run.told(0, "step") == [1]
    assert run.told(0, "handlers") == [["StopRequests._note_signal"] * 3]


def test_run_whose_last_step_is_done_has_nothing_to_stop(started: Callable[..., Ranks]) -> None:
    run = started("asked_before", steps=1, world=1)
    codes, errors = run.ends(START_S)
    assert codes == [0], errors
    assert run.told(0, "ended") == [1]
    assert run.told(0, "saved") == []


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_rank_ends_the_other_and_all_workers(
    started: Callable[..., Ranks], left: Left, victim: int
) -> None:
    run = started("plain")
    run.wait_for_step(3)
    pids = run.pids(0) + run.pids(1)
    os.kill(run.pids(victim)[0], signal.SIGKILL)
    codes, _ = run.ends()
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] not in (0, 2, 75)  # the batch script starts the job again
    assert not (run.folder / "state/exit").exists()
    assert left(pids, END_S) == []


@pytest.mark.slow
def test_torchrun_ends_what_is_left_of_a_killed_rank(
    started: Callable[..., Ranks], left: Left
) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run = started("plain", command=torchrun)
    run.wait_for_step(3)
    pids = run.pids(0) + run.pids(1)
    os.kill(run.pids(1)[0], signal.SIGKILL)
    codes, _ = run.ends(within_s=30)
    assert codes[0] != 0
    assert left(pids, END_S) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_first_process_of_lightnings_own_ranks_returns_what_happened(
    started: Callable[..., Ranks], left: Left, number: signal.Signals, code: int
) -> None:
    """A Ctrl-C reaches every process of the terminal, data workers among them."""
    run = started("plain", command=(sys.executable,))
    run.wait_for_step(3)
    pids = run.pids(0) + run.pids(1)
    (os.killpg if number is signal.SIGINT else os.kill)(run.pids(0)[0], number)
    codes, errors = run.ends(within_s=30)
    assert codes == [code], errors
    assert "Traceback" not in errors[0]
    assert run.told(0, "saved") == run.told(1, "saved") != []
    assert left(pids, END_S) == []


def test_ctrl_c_before_the_first_step_ends_all_ranks_in_one_line(
    started: Callable[..., Ranks], left: Left
) -> None:
    run = started("slow_start", command=(sys.executable,))
    until = time.monotonic() + START_S
    while not (run.told(0, "handlers") and run.told(1, "handlers")):
        assert time.monotonic() < until, "the ranks do not start"
        time.sleep(0.02)
    os.killpg(run.pids(0)[0], signal.SIGINT)
    codes, errors = run.ends(within_s=30)
    assert codes == [130], errors
    assert errors[0].endswith("efficientsam: interrupted\n")
    assert errors[0].count("efficientsam:") == 1
    assert "Traceback" not in errors[0]
    assert (run.folder / "state/exit").read_text() == "130\n"
    assert left(run.pids(0) + run.pids(1), END_S) == []


def test_second_ctrl_c_ends_a_run_amid_its_step(started: Callable[..., Ranks], left: Left) -> None:
    run = started("sleep", world=1, command=(sys.executable,))
    run.wait_for_step(3, ranks=(0,))
    pids = run.pids(0)
    for _ in range(2):
        os.kill(pids[0], signal.SIGINT)
        time.sleep(0.3)  # two that wait at once are one
    codes, errors = run.ends(within_s=2)
    assert codes == [130]
    assert errors[0].endswith("efficientsam: interrupted; nothing is saved\n")
    assert run.told(0, "saved") == []
    assert left(pids, END_S) == []


@pytest.mark.slow
def test_torchrun_that_forwards_a_ctrl_c_lets_its_ranks_save(
    started: Callable[..., Ranks], left: Left
) -> None:
    """Each rank gets it twice: from the terminal and from torchrun."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run = started("plain", command=torchrun)
    run.wait_for_step(3)
    os.killpg(run.processes[0].pid, signal.SIGINT)
    for pid in (run.pids(0)[0], run.pids(1)[0]):  # torchrun's children lead sessions of their own
        os.kill(pid, signal.SIGINT)
    _, errors = run.ends(within_s=30)
    assert run.told(0, "saved") == run.told(1, "saved") != []
    assert "since it got Ctrl-C; the same command continues" in errors[0]
    assert left(run.pids(0) + run.pids(1), END_S) == []


def test_unlike_ranks_do_not_train(started: Callable[..., Ranks]) -> None:
    run = started("unlike")
    codes, errors = run.ends(START_S)
    assert codes[0] == 2
    host = socket.gethostname()
    assert errors[0].endswith(
        f"efficientsam: rank 1 on {host} does not run what rank 0 on {host} does: "
        "config.trainer.rank is 1 there and 0 here\n"
    )
    assert run.told(0, "step") == []
    assert (run.folder / "state/exit").read_text() == "2\n"


def test_what_one_rank_alone_has_found_is_told_by_it(started: Callable[..., Ranks]) -> None:
    run = started("be_wrong")
    codes, errors = run.ends(START_S)
    assert codes[1] == 2
    assert codes[0] != 0
    told = f"efficientsam: rank 1 on {socket.gethostname()}: what only rank 1 has found\n"
    assert told in errors[1]
