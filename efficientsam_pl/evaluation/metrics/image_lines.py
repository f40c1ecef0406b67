"""A metric whose state is a line of JSON an image: exact on any number of ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

_ID = json.JSONDecoder()  # for the image id, the first entry of a line


class ImageLines(Metric):
    """Lines of all ranks, each image once even if several ranks saw it.

    The state is bytes: run-lengths take a thousandth of the masks, and ranks gather bytes of
    different lengths, even zero, in a single call.
    """

    full_state_update = False
    higher_is_better = True
    lines: list[UInt8[Tensor, "bytes"]] | UInt8[Tensor, "bytes"]

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=_gather_bytes)
        self.add_state("lines", [], dist_reduce_fx="cat")

    def add_line(self, image_id: str, content: Sequence[Any]) -> None:
        """Add an image's plain values."""
        line = json.dumps([image_id, *content]) + "\n"
        data = torch.frombuffer(bytearray(line.encode()), dtype=torch.uint8)
        assert isinstance(self.lines, list)
        self.lines.append(data.to(self.device))

    def lines_once(self) -> list[str]:
        """Return a line for each image, in the order of the ids.

        The order counts, since COCO breaks ties between scores by it. Lines are parsed one by one
        by whoever uses them: garbage collection over all records at once would dominate.
        """
        parts = self.lines if isinstance(self.lines, list) else [self.lines]
        text = b"".join(part.cpu().numpy().tobytes() for part in parts).decode()
        once = {_ID.raw_decode(line, 1)[0]: line for line in text.splitlines()}
        return [once[key] for key in sorted(once)]


def _gather_bytes(data: Tensor, group: Any = None) -> list[Tensor]:
    # For a rank without images torchmetrics makes up an empty float tensor
    gathered: list[Tensor] = gather_all_tensors(data.to(torch.uint8), group)
    return gathered
