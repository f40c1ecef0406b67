"""Patience with a store: pauses, what ends them early, and the store's own wishes."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import torch

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage import retries
from efficientsam_pl.storage.filesystems import StoreRefusedError, is_gone
from efficientsam_pl.storage.retries import (
    FEWEST_TRIES,
    SourceLostError,
    set_store_patience,
    store_patience_s,
    with_retries,
)


class Clock:
    """A clock that only pauses move."""

    def __init__(self) -> None:
        self.now, self.pauses = 1000.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(retries, "time", made)
    monkeypatch.setattr(retries, "_logged_at", [])
    return made


class StatusError(Exception):
    """An HTTP library's error."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"status {status}")
        self.status, self.headers = status, headers or {}


def failing(times: int, error: Exception) -> tuple[Callable[[], str], list[int]]:
    calls: list[int] = []

    def act() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    return act, calls


PASSING = [
    ConnectionError("reset"),
    TimeoutError("slow"),
    OSError("SlowDown"),
    *(StatusError(status) for status in (408, 429, 500, 502, 503, 504)),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_passing_failure_is_waited_out(
    error: Exception, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_store_patience(100.0)
    act, calls = failing(6, error)
    assert with_retries(act, "memory://x") == "done"
    assert len(calls) == 7


def test_pauses_double_up_to_half_a_minute_and_no_two_runs_have_the_same(clock: Clock) -> None:
    set_store_patience(10_000.0)
    runs = []
    for _ in range(2):
        act, _ = failing(9, ConnectionError("reset"))
        clock.pauses = []
        assert with_retries(act, "memory://x") == "done"
        runs.append(clock.pauses)
    for pauses in runs:
        for pause, longest in zip(pauses, [0.5, 1, 2, 4, 8, 16, 30, 30, 30], strict=True):
            assert longest / 2 <= pause <= longest
    assert runs[0] != runs[1]


def test_pauses_take_no_number_from_seeded_generators(clock: Clock) -> None:
    set_store_patience(100.0)
    random.seed(3)
    torch.manual_seed(3)
    before = random.getstate(), torch.get_rng_state().tolist()
    act, _ = failing(3, ConnectionError("reset"))
    with_retries(act, "memory://x")
    assert (random.getstate(), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("patience", [7.0, 60.0, 300.0])
def test_store_that_stays_away_for_the_patience_is_lost(patience: float, clock: Clock) -> None:
    set_store_patience(patience)
    assert store_patience_s() == patience
    act, calls = failing(10**6, ConnectionError("reset\nby peer"))
    with pytest.raises(SourceLostError) as caught:
        with_retries(act, "memory://x")
    assert sum(clock.pauses) == pytest.approx(patience)
    assert str(caught.value) == (
        f"memory://x does not respond after {len(calls)} tries in {patience:.0f} s: "
        "ConnectionError: reset by peer"
    )


def test_slow_failures_are_tried_a_few_times_whatever_the_patience(clock: Clock) -> None:
    set_store_patience(60.0)
    calls: list[int] = []

    def breaks_off_after_an_hour() -> None:
        calls.append(1)
        clock.now += 3600
        raise ConnectionError("reset")

    with pytest.raises(SourceLostError):
        with_retries(breaks_off_after_an_hour, "memory://x")
    assert len(calls) == FEWEST_TRIES


def test_time_that_the_caller_has_waited_counts(clock: Clock) -> None:
    set_store_patience(60.0)
    act, calls = failing(99, ConnectionError("reset"))
    with pytest.raises(SourceLostError):
        with_retries(act, "memory://x", since=clock.now - 61)
    assert len(calls) == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_pause_that_the_server_requests_is_made(form: str, clock: Clock) -> None:
    set_store_patience(100.0)
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    act, _ = failing(1, StatusError(429, {"Retry-After": "20" if form == "seconds" else until}))
    assert with_retries(act, "memory://x") == "done"
    assert 15 <= clock.pauses[0] <= 20


@pytest.mark.parametrize("text", ["soon", "-3", "", "1e9"])
def test_request_for_a_pause_that_cannot_be_read_is_ignored(text: str, clock: Clock) -> None:
    set_store_patience(100.0)
    act, _ = failing(1, StatusError(503, {"Retry-After": text}))
    assert with_retries(act, "memory://x") == "done"
    assert clock.pauses[0] <= 0.5


def test_long_wait_is_logged_once_and_names_the_file(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    set_store_patience(100.0)
    act, _ = failing(6, ConnectionError("reset"))
    with_retries(act, "memory://x/a.tar")
    assert caplog.messages == [
        "memory://x/a.tar does not respond (ConnectionError: reset); it is tried again for up to "
        "100 s"
    ]


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class ClientError(Exception):
    """Like botocore's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"An error occurred ({status})")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


class NoCredentialsError(Exception):
    """Like botocore's."""


LASTING: list[tuple[str, Exception, type[Exception]]] = [
    ("memory://x", FileNotFoundError("x"), FileNotFoundError),
    ("memory://x", UserError("wrong"), UserError),
    ("/local", PermissionError("x"), PermissionError),
    ("memory://x", PermissionError("Access Denied"), StoreRefusedError),
    ("memory://x", StatusError(401), StoreRefusedError),
    ("memory://x", StatusError(403), StoreRefusedError),
    ("memory://x", StatusError(405), StoreRefusedError),
    ("memory://x", ClientError(403), StoreRefusedError),
    ("memory://x", chained(OSError(22, "token"), ClientError(400)), StoreRefusedError),
    ("memory://x", NoCredentialsError("Unable to locate credentials"), StoreRefusedError),
    ("memory://x", chained(FileNotFoundError("x"), StatusError(403)), StoreRefusedError),
    ("memory://x", chained(FileNotFoundError("x"), StatusError(404)), FileNotFoundError),
    ("memory://x", OSError(28, "No space left on device"), OSError),
]


@pytest.mark.parametrize(("path", "error", "kind"), LASTING, ids=lambda value: repr(value)[:60])
def test_what_will_not_pass_is_not_tried_again(
    path: str, error: Exception, kind: type[Exception], clock: Clock
) -> None:
    set_store_patience(1000.0)
    act, calls = failing(99, error)
    with pytest.raises(kind) as caught:
        with_retries(act, path)
    assert len(calls) == 1
    assert "\n" not in str(caught.value)
    if kind is StoreRefusedError:
        assert str(caught.value).startswith("memory://x: ")


@pytest.mark.parametrize(
    "cause", [TimeoutError(), ConnectionError(), StatusError(503), StatusError(429)], ids=repr
)
def test_missing_file_of_a_store_that_fails_is_not_missing(cause: Any) -> None:
    assert not is_gone(chained(FileNotFoundError("x"), cause))
