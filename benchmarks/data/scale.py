"""Memory and time of sets of many shards, and of starting commands. A part of benchmarks.data."""

import hashlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import fsspec
import numpy as np

from benchmarks.harness import Row
from efficientsam_pl.data.index import ShardIndex, from_bytes, to_bytes
from efficientsam_pl.data.index_places import index_beside, manifest_path
from efficientsam_pl.data.manifest import Shard, write_manifest
from efficientsam_pl.data.sampler import EpochOrder
from efficientsam_pl.data.shards import ShardSet, open_shards

_SA1B_SHARDS, _SA1B_SAMPLES = 1000, 11_000  # in all, and of a shard
_BLOCK = 8  # data.block_shards
_KEPT_BEFORE = 256  # parsed indexes that a process kept
_MANY_SHARDS = 10_000
_COMMANDS = {"pack": 0.5, "check_shards": 0.5, "predict": 1.6}  # goals: times of `import torch`
_IMPORTS = """
import sys, time
from importlib import import_module
for name in sys.argv[1:]:
    import_module(name)
status = open("/proc/self/status").read().split("VmHWM:")[1]
print(time.process_time(), int(status.split()[0]) / 1024)
"""


def scale_rows(folder: Path, quick: bool) -> list[Row]:
    """Measure all of them; quickly the imports of `pack` alone, since large sets take a minute."""
    if quick:
        return import_rows(("pack",), rounds=1)
    return [
        *index_rows(folder / "sa1b", blocks=33),
        *start_rows(folder / "start", rounds=5),
        *import_rows(tuple(_COMMANDS), rounds=5),
    ]


def index_rows(folder: Path, blocks: int) -> list[Row]:
    """Measure what a worker's indexes take at SA-1B's size, and its first samples."""
    pattern = write_set(folder, _SA1B_SHARDS, _SA1B_SAMPLES)
    start = time.perf_counter()
    shards = open_shards(pattern)
    order = EpochOrder(shards.sizes(), 0, 0, _BLOCK)
    for number in order.samples(len(shards) // 2, len(shards) // 2 + 16):
        shards.sample(number)
    first = time.perf_counter() - start
    in_block = _BLOCK * _SA1B_SAMPLES
    numbers = [n for b in range(blocks) for n in order.samples(b * in_block, b * in_block + 256)]
    few = open_shards(write_set(folder.with_name("few"), 1, 1))
    empty = private_mib(lambda: look_up(few, [0] * len(numbers)))
    private_mib(lambda: look_up(shards, numbers))  # the compact indexes are written
    ours = private_mib(lambda: look_up(shards, numbers)) - empty
    kept = min(_KEPT_BEFORE, blocks * _BLOCK)
    parsed = private_mib(lambda: parse(shards.shards[:kept])) - empty
    work = f"{_SA1B_SHARDS} shards x {_SA1B_SAMPLES} samples, blocks of {_BLOCK} shards"
    return [
        Row(
            id="data.index_memory",
            work=f"private memory of a worker's indexes beyond an empty index's: {work}",
            value=max(ours, 0.0),
            unit="MiB",
            goal=40,
        ),
        Row(
            id="data.index_memory_parsed",
            work=f"the former way: {_KEPT_BEFORE} parsed indexes kept; {kept} measured",
            value=parsed * _KEPT_BEFORE / kept,
            unit="MiB",
        ),
        Row(
            id="data.index_first_samples",
            work=f"from opening the set to 16 samples' places in the middle of an epoch: {work}",
            value=first,
            unit="s",
            goal=0.5,
        ),
    ]


def start_rows(folder: Path, rounds: int) -> list[Row]:
    """Measure what a rank's processor does to open ten thousand shards."""
    pattern = write_set(folder, _MANY_SHARDS, 1)
    seconds: dict[str, list[float]] = {"first": [], "other": [], "resolved": []}
    ways: dict[str, Callable[[], object]] = {
        "first": lambda: open_shards(pattern),
        "other": lambda: open_shards(pattern, check_sizes=False),
        "resolved": lambda: list_and_resolve(pattern),
    }
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    spent = {name: statistics.median(measured) for name, measured in seconds.items()}
    return [
        Row(
            id="data.start_10000_shards",
            work="processor time of opening 10,000 shards on the first rank, which compares sizes",
            value=spent["first"],
            unit="s",
            goal=0.5,
        ),
        Row(
            id="data.start_10000_shards_other_rank",
            work="the same on the other ranks, which list names alone",
            value=spent["other"],
            unit="s",
            goal=0.5,
        ),
        Row(
            id="data.start_10000_shards_resolved",
            work="the former way: listed by fsspec, each name resolved three times",
            value=spent["resolved"],
            unit="s",
        ),
    ]


def import_rows(commands: Sequence[str], rounds: int) -> list[Row]:
    """Measure what the imports of a command take, against bare `import torch`."""
    modules = {"torch": ["torch"]} | {
        name: ["efficientsam_pl.cli.main", f"efficientsam_pl.commands.{name}"] for name in commands
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in modules}
    for _ in range(rounds):
        for name, imported in modules.items():
            taken[name].append(_imports(imported))
    medians = {name: np.median(pairs, axis=0).tolist() for name, pairs in taken.items()}
    return [row for name in commands for row in _import_rows(name, medians[name], medians["torch"])]


def write_set(folder: Path, shards: int, samples: int) -> str:
    """Write a set whose shards are one file under many names, with one index and a manifest."""
    folder.mkdir(parents=True)
    stride = 4096
    offsets = 512 + 2 * stride * np.arange(samples)
    places = {
        suffix: np.stack([offsets + shift, np.full(samples, 3000)], axis=1)
        for suffix, shift in (("jpg", 0), ("json", stride))
    }
    keys = tuple(f"sa_{number}" for number in range(samples))
    sha256 = hashlib.sha256(b"").hexdigest()
    index = ShardIndex(2 * stride * samples + 512, sha256, keys, places)
    content, tar, json_index = to_bytes(index), folder / "s-00000.tar", None
    with tar.open("wb") as file:
        file.truncate(index.bytes)
    entries = []
    for number in range(shards):
        path = folder / f"s-{number:05d}.tar"
        place = Path(index_beside(str(path)))
        if number:
            path.hardlink_to(tar)
        if json_index is None:
            place.write_bytes(content)
            json_index = place
        else:
            place.hardlink_to(json_index)
        entries.append(Shard(str(path), str(place), index.bytes, samples, sha256))
    write_manifest(str(folder), entries)
    return f"{folder}/*.tar"


def look_up(shards: ShardSet, numbers: Sequence[int]) -> None:
    """Look up the places of samples, as a worker does for each batch."""
    for number in numbers:
        shards.sample(number)


def parse(shards: Sequence[Shard]) -> list[ShardIndex]:
    """Parse the indexes of shards and keep them."""
    return [from_bytes(Path(shard.index).read_bytes(), shard.index) for shard in shards]


def list_and_resolve(pattern: str) -> set[str]:
    """List a pattern and read its manifest as the program did before it listed a folder once."""
    fs, plain = fsspec.core.url_to_fs(pattern)
    paths = [os.path.normpath(name) for name in fs.glob(plain, detail=True)]
    Path(manifest_path(str(Path(plain).parent), None)).read_bytes()
    resolved: set[str] = set()
    for _ in range(3):
        for path in paths:
            resolved.add(os.path.realpath(fsspec.core.url_to_fs(path)[1]))
    return resolved


def private_mib(work: Callable[[], object]) -> float:
    """Return the private memory (unique set size) of a forked process after its work, in MiB."""
    context = get_context("fork")  # as DataLoader starts workers
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_send_private, args=(work, send))
    process.start()
    measured: float = receive.recv()
    process.join()
    return measured


def _send_private(work: Callable[[], object], send: Connection) -> None:
    result = work()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    private = [line.split()[1] for line in lines if line.startswith("Private_")]
    send.send(sum(map(int, private)) / 1024)
    del result


def _imports(modules: Sequence[str]) -> tuple[float, float]:
    """Return processor seconds and peak MiB of a process that imports modules."""
    command = [sys.executable, "-c", _IMPORTS, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, mib = map(float, done.stdout.split())
    return seconds, mib


def _import_rows(name: str, ours: Sequence[float], torch: Sequence[float]) -> list[Row]:
    command, goal = name.replace("_", "-"), _COMMANDS[name]
    return [
        Row(
            id=f"data.import_{name}",
            work=f"processor time of `efficientsam {command}` until its imports are done; "
            "reference: `import torch`",
            value=ours[0],
            unit="s",
            reference=torch[0],
            goal=goal,
        ),
        Row(
            id=f"data.import_{name}_memory",
            work="peak resident memory of the same",
            value=ours[1],
            unit="MiB",
            reference=torch[1],
            goal=min(goal, 1.1),
        ),
    ]
