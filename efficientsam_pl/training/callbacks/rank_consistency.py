"""Check that all ranks run the same program with the same config."""

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
_MAX_DIFFERENCES = 4  # in the message
_MAX_CHARACTERS = 200  # per value

Facts = dict[str, Any]  # by a name that users know, such as a config key


class RankConsistency(L.Callback):
    """Compare the ranks once the process group exists, before anything is built or loaded.

    A node with another checkout, other packages or another file at the same path would train
    without an error, but to other weights.
    """

    def __init__(self, header: Mapping[str, Any]) -> None:
        """`header`: what determines a run, as nested plain values: config, checkpoint to resume."""
        self._header = header

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare the ranks, once per fit.

        Raises:
            UserError: On all ranks, if they differ; names the differences.
        """
        if stage == "fit" and dist.is_available() and dist.is_initialized():
            check_ranks_match(local_facts() | flatten(self._header))


def local_facts() -> Facts:
    """Describe the program that this rank runs: its code and its packages."""
    packages = versions("torch", "lightning", "numpy")
    code = code_fingerprint(_PACKAGE)
    return {"code of efficientsam_pl": code, "python": platform.python_version(), **packages}


def code_fingerprint(package: Path) -> str:
    """Hash all Python files below a folder to 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def check_ranks_match(local: Facts) -> None:
    """Compare all ranks' facts by digest, and in full only if digests differ.

    Raises:
        UserError: On all ranks; names the first rank that differs from rank 0, and the differences.
    """
    payload = json.dumps(local, sort_keys=True, default=str)
    digests = _gather(hashlib.sha256(payload.encode()).digest())
    if len(set(digests)) == 1:
        return
    ranks: list[tuple[str, Facts]] = _gather((socket.gethostname(), json.loads(payload)))
    host, first = ranks[0]
    number = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    other_host, other = ranks[number]
    texts = [
        f"{key} is {_short(there)} there and {_short(here)} here"
        for key, here, there in diff(first, other)
    ]
    raise UserError(
        f"rank {number} on {other_host} does not run what rank 0 on {host} does: "
        f"{join_first(texts, _MAX_DIFFERENCES)}"
    )


def _gather(local: Any) -> list[Any]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, local)
    return gathered


def _short(value: Any) -> str:
    return shorten(repr(value), _MAX_CHARACTERS)
