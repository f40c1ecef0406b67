"""Limits of the machine: what batches in flight need is computed, and said where it is missing."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efficientsam_pl.data import limits
from efficientsam_pl.data.config import CropConfig
from efficientsam_pl.data.datasets.crops import CropDataset
from efficientsam_pl.data.limits import (
    BatchesInFlight,
    batches_in_flight,
    check_open_files,
    check_shared_memory,
)
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.errors import UserError

LOADER = BatchesInFlight(count=20, tensors=10, bytes=1 << 20)


class Limit:
    """A limit of open files, and what it is set to."""

    def __init__(self, soft: int, hard: int) -> None:
        self.now = (soft, hard)

    def getrlimit(self, kind: int) -> tuple[int, int]:
        assert kind == resource.RLIMIT_NOFILE
        return self.now

    def setrlimit(self, kind: int, now: tuple[int, int]) -> None:
        self.now = now


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], Limit]:
    def install(soft: int, hard: int) -> Limit:
        made = Limit(soft, hard)
        monkeypatch.setattr(limits.resource, "getrlimit", made.getrlimit)
        monkeypatch.setattr(limits.resource, "setrlimit", made.setrlimit)
        return made

    return install


def open_now() -> int:
    """Count the open files of this process, which may have run many tests."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_batch_of_padding_has_the_size_of_any_batch() -> None:
    dataset = CropDataset(SampleReader([], ["jpg"]), CropConfig(), 16, seed=1)
    measured = batches_in_flight(dataset, 4, 3)  # images of 16 pixels, keys and validity
    assert measured == BatchesInFlight(3, 3, 4 * (3 * 16 * 16 + 8 + 1))


def test_low_limit_of_open_files_names_the_number_needed(limit: Any) -> None:
    limit(64, 64)
    with pytest.raises(UserError, match=r"need up to (\d+) open files, .* is 64: .*-n \1\)") as end:
        check_open_files([LOADER], workers=8)
    assert 200 < int(str(end.value).split("need up to ")[1].split()[0]) - open_now() < 600


def test_limit_that_may_be_raised_is_raised_as_far_as_needed(limit: Any) -> None:
    made = limit(64, 1 << 16)
    check_open_files([LOADER], workers=8)
    assert 200 < made.now[0] - open_now() < 600
    assert made.now[1] == 1 << 16
    before = made.now
    check_open_files([BatchesInFlight(1, 3, 100)], workers=1)
    assert made.now == before


@pytest.mark.parametrize("unlimited", [(resource.RLIM_INFINITY,) * 2, (10**6, 10**6)])
def test_limit_that_is_high_enough_stays(unlimited: tuple[int, int], limit: Any) -> None:
    made = limit(*unlimited)
    check_open_files([LOADER], workers=8)
    assert made.now == unlimited


def test_small_shared_memory_names_both_numbers(
    mount_disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SHARED_MEMORY", str(mount_disk(64 * 1024).path))
    check_shared_memory([LOADER], processes=3)
    with pytest.raises(UserError, match=r"has 64 MiB free, .* need 80 MiB: .*--shm-size=80m"):
        check_shared_memory([LOADER], processes=4)


def test_system_without_shared_memory_is_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SHARED_MEMORY", str(tmp_path / "none"))
    check_shared_memory([LOADER], processes=10**9)
