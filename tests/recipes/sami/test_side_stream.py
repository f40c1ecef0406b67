"""The target on a stream of its own; CUDA's streams are replaced by records of what they order."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from efficientsam_pl.recipes.sami.side_stream import SideStream

CUDA = torch.device("cuda")


class FakeStream:
    """Records the streams that it waits for."""

    def __init__(self, name: str) -> None:
        self.name, self.waits_for = name, list[str]()

    def wait_stream(self, other: "FakeStream") -> None:
        self.waits_for.append(other.name)


class FakeCuda:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.main = FakeStream("main")
        self.active, self.made = self.main, list[FakeStream]()
        monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: self.active)
        monkeypatch.setattr(torch.cuda, "Stream", self._make)
        monkeypatch.setattr(torch.cuda, "stream", self._entered)

    def _make(self, *_: object) -> FakeStream:
        self.made.append(FakeStream(f"side {len(self.made)}"))
        return self.made[-1]

    @contextmanager
    def _entered(self, stream: FakeStream) -> Iterator[None]:
        before, self.active = self.active, stream
        yield
        self.active = before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def test_each_stream_waits_for_the_other_exactly_where_data_passes(cuda: FakeCuda) -> None:
    seen: list[tuple[str, list[str], list[str]]] = []

    def note() -> Tensor:
        waits = (list(stream.waits_for) for stream in (cuda.made[0], cuda.main))
        seen.append((cuda.active.name, *waits))
        return torch.tensor(7.0)

    collect = SideStream().start(note, CUDA)
    assert seen == [("side 0", ["main"], [])]  # after the batch is there, before the student
    assert cuda.active is cuda.main
    assert cuda.main.waits_for == []  # the student's encoder is not held up
    assert collect() == 7
    assert cuda.main.waits_for == ["side 0"]


def test_every_step_uses_the_same_stream_and_gets_its_own_result(cuda: FakeCuda) -> None:
    side = SideStream()
    results = [float(side.start(lambda n=n: torch.tensor(float(n)), CUDA)()) for n in range(3)]  # type: ignore[misc]
    assert results == [0, 1, 2]
    assert len(cuda.made) == 1
    assert cuda.made[0].waits_for == 3 * ["main"]  # results of earlier steps are then out of use


def test_a_cpu_computes_at_once() -> None:
    collect = SideStream().start(lambda: torch.tensor(5.0), torch.device("cpu"))
    assert collect() is collect()
