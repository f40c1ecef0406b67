"""Packing without a command, and shards read back with the standard library alone."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from efficientsam_pl.data.packing.runner import ArrayShare, Source, run_packing
from efficientsam_pl.data.packing.writer import PackSummary


def _pack(source: Source, out: Path | str, share: ArrayShare | None = None) -> PackSummary:
    return run_packing(source, str(out), share or ArrayShare(), 0, lambda weight: None)


def _unpacked(folder: Path) -> dict[str, bytes]:
    """The files of all shards of a folder by name, in their order; a name met twice fails."""
    files: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                assert member.name not in files
                files[member.name] = content.read()
    return files


@pytest.fixture(scope="session")
def pack() -> Callable[..., PackSummary]:
    return _pack


@pytest.fixture(scope="session")
def unpacked() -> Callable[[Path], dict[str, bytes]]:
    return _unpacked
