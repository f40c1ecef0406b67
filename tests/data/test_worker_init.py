"""Data workers and signals: real processes, started in both ways."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from efficientsam_pl.data.worker_init import make_worker_init_fn

Left = Callable[[list[int], float], list[int]]

PARENT = """
import sys, time
from pathlib import Path
from torch.utils.data import DataLoader
sys.path.insert(0, {folder!r})
from test_worker_init import Numbers, make_worker_init_fn
if __name__ == "__main__":
    loader = DataLoader(
        Numbers(asleep={asleep}), batch_size=None, num_workers=2, prefetch_factor=1,
        worker_init_fn=make_worker_init_fn(), multiprocessing_context={method!r},
    )
    numbers = iter(loader)
    Path(sys.argv[1]).write_text(" ".join(str(one.pid) for one in numbers._workers))
    for number in numbers:
        pass
"""


class Numbers(Dataset[int]):
    """0 to 5; a worker can be made to sleep in its second."""

    def __init__(self, asleep: bool = False) -> None:
        self.asleep = asleep

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> int:
        if self.asleep and number >= 2:
            time.sleep(300)
        return number


@pytest.fixture(params=["fork", "spawn"])
def begun(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Starts two workers: begun(asleep=False)."""
    loaders: list[Any] = []

    def begin(asleep: bool = False) -> Any:
        loader = DataLoader(
            Numbers(asleep),
            batch_size=None,
            num_workers=2,
            prefetch_factor=1,
            worker_init_fn=make_worker_init_fn(),
            multiprocessing_context=request.param,
        )
        numbers = iter(loader)
        assert [next(numbers), next(numbers)] == [0, 1]  # both have begun
        loaders.append(numbers)
        return numbers

    yield begin
    for numbers in loaders:
        numbers._shutdown_workers()


def test_signals_from_elsewhere_change_nothing(begun: Callable[..., Any]) -> None:
    numbers = begun()
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        for worker in numbers._workers:
            subprocess.run(["kill", f"-{number.name[3:]}", str(worker.pid)], check=True)
    time.sleep(0.3)
    assert list(numbers) == [2, 3, 4, 5]


def test_parent_with_workers_that_hang_can_exit(left: Left, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    folder = str(Path(__file__).parent)
    written = PARENT.format(folder=folder, asleep=True, method="fork")
    script.write_text(written.replace("for number in numbers:\n        pass", "next(numbers)"))
    done = subprocess.run([sys.executable, script, tmp_path / "pids"], timeout=60, check=False)
    assert done.returncode == 0
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert left(pids, 0) == []


@pytest.mark.parametrize("asleep", [False, True])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_killed_parent_end(
    method: str, asleep: bool, left: Left, tmp_path: Path
) -> None:
    script = tmp_path / "parent.py"
    folder = str(Path(__file__).parent)
    script.write_text(PARENT.format(folder=folder, asleep=True, method=method))
    parent = subprocess.Popen(
        [sys.executable, script, tmp_path / "pids"], stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "pids").exists() or not (tmp_path / "pids").read_text():
        time.sleep(0.05)
    time.sleep(3 if asleep else 0)  # asleep in a read, or still beginning
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert left(pids, 0) == pids
    parent.kill()
    parent.wait()
    assert left(pids, 10) == []


def test_interrupt_of_all_is_reported_once(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    folder = str(Path(__file__).parent)
    script.write_text(PARENT.format(folder=folder, asleep=True, method="fork"))
    parent = subprocess.Popen(
        [sys.executable, script, tmp_path / "pids"], stderr=subprocess.PIPE, start_new_session=True
    )
    while not (tmp_path / "pids").exists() or not (tmp_path / "pids").read_text():
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(parent.pid, signal.SIGINT)
    _, output = parent.communicate(timeout=30)
    assert output.decode().count("Traceback (most recent call last)") == 1  # the parent's own
