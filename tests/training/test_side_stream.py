"""Order of copies and waits on streams that only write down what is queued."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from efficientsam_pl.structures import ImageBatch
from efficientsam_pl.training.datamodule import TrainingDataModule
from efficientsam_pl.training.lookahead import LookaheadLoader
from efficientsam_pl.training.side_stream import CopiedBatch, SideStream

QUEUED: list[tuple[str, str]] = []


class FakeStream:
    """Writes down, with its name, what is queued on it."""

    def __init__(self, name: Any = "side") -> None:
        self.name = str(name) if isinstance(name, str) else "side"

    def record_event(self) -> str:
        QUEUED.append((self.name, "record"))
        return "copied"

    def wait_event(self, event: str) -> None:
        QUEUED.append((self.name, f"wait {event}"))


@pytest.fixture(autouse=True)
def _fake_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def current(stream: FakeStream) -> Iterator[None]:
        QUEUED.append((stream.name, "enter"))
        yield
        QUEUED.append((stream.name, "leave"))

    def record_stream(tensor: Tensor, stream: FakeStream) -> None:
        QUEUED.append((stream.name, f"keep {list(tensor.shape)}"))

    QUEUED.clear()
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: FakeStream("compute"))
    monkeypatch.setattr(Tensor, "record_stream", record_stream)


def batch(number: int) -> ImageBatch:
    image = torch.full((1, 3, 2, 2), number, dtype=torch.uint8)
    return ImageBatch(image, torch.tensor([number]), torch.tensor([True]), (str(number),))


def test_a_copy_is_started_on_the_side_stream_and_waited_for_when_it_is_used() -> None:
    side = SideStream(torch.device("cpu"))
    loader = LookaheadLoader(map(batch, range(9)), 1, 9, pytest.fail, side.start)
    copied = next(iter(loader))
    assert isinstance(copied, CopiedBatch)
    assert QUEUED == [("side", "enter"), ("side", "leave"), ("side", "record")]
    QUEUED.clear()
    module = object.__new__(TrainingDataModule)
    used = module.transfer_batch_to_device(copied, torch.device("cpu"), 0)
    assert torch.equal(used.image, batch(0).image)
    assert QUEUED[0] == ("compute", "wait copied")
    kept = [("compute", f"keep {shape}") for shape in ([1, 3, 2, 2], [1], [1])]
    assert QUEUED[1:] == kept  # no tensor's memory is reused before the step has read it


def test_every_batch_is_started_once_in_order_also_the_last_ones() -> None:
    started = []
    loader = LookaheadLoader(map(batch, range(3)), 1, 9, pytest.fail, started.append)
    assert len(list(loader)) == 3
    assert [images.key for images in started] == [("0",), ("1",), ("2",)]


def test_on_a_cpu_batches_are_handed_out_as_they_are() -> None:
    loader = LookaheadLoader(map(batch, range(3)), 1, 9, pytest.fail)
    assert all(isinstance(images, ImageBatch) for images in loader)
