"""All ranks run the same program with the same config, or none trains."""

import hashlib
import json
import platform
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch.distributed as dist

from efficientsam_pl.config.diff import diff, flatten, join_first, shorten
from efficientsam_pl.errors import UserError
from efficientsam_pl.versions import versions

_PACKAGE = Path(__file__).parents[2]
_TOLD = 4  # differences
_CHARACTERS = 200  # of a value

Facts = dict[str, Any]  # by a name that a user knows, such as a config's key


class RankConsistency(L.Callback):
    """Compares the ranks when they have met, before anything is built or loaded.

    A node with another checkout, other packages or another file behind the same path would train
    on without an error, and to other weights.
    """

    def __init__(self, header: Mapping[str, Any]) -> None:
        """`header`: what decides a run, as nested plain values: its config, where it goes on."""
        self._header = header

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compares, once a fit.

        Raises:
            UserError: On all ranks: they differ, and in what.
        """
        if stage == "fit" and dist.is_available() and dist.is_initialized():
            check_alike(facts_here() | flatten(self._header))


def facts_here() -> Facts:
    """The program that this rank runs: its files and what it imports."""
    packages = versions("torch", "lightning", "numpy")
    code = code_fingerprint(_PACKAGE)
    return {"code of efficientsam_pl": code, "python": platform.python_version(), **packages}


def code_fingerprint(package: Path) -> str:
    """Of all Python files below a folder: 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def check_alike(mine: Facts) -> None:
    """Compares what the ranks tell of themselves: 32 bytes each, and all of it where they differ.

    Raises:
        UserError: On all ranks alike: the first one that differs from rank 0, and in what.
    """
    told = json.dumps(mine, sort_keys=True, default=str)
    digests = _gathered(hashlib.sha256(told.encode()).digest())
    if len(set(digests)) == 1:
        return
    ranks: list[tuple[str, Facts]] = _gathered((socket.gethostname(), json.loads(told)))
    host, first = ranks[0]
    number = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    other_host, other = ranks[number]
    texts = [
        f"{key} is {_short(there)} there and {_short(here)} here"
        for key, here, there in diff(first, other)
    ]
    raise UserError(
        f"rank {number} on {other_host} does not run what rank 0 on {host} does: "
        f"{join_first(texts, _TOLD)}"
    )


def _gathered(mine: Any) -> list[Any]:
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    return everyones


def _short(value: Any) -> str:
    return shorten(repr(value), _CHARACTERS)
