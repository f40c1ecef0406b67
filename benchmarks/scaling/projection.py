"""Project both stages onto 1 to 128 nodes of eight H200: the tables of docs/scaling.md.

`Node`'s defaults are the assumptions; FLOPs and shapes are counted by torch, launches and bytes by
`benchmarks.step_counts.table`, whose file is read; bytes of images and decoding rates were measured
(benchmarks/results/data.md and sami.md), and so was the teacher on one H200 (gpu.md). Several GPUs
were not measured.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.scaling.cluster import (
    Node,
    Step,
    Work,
    checkpoint_bytes,
    gathering_seconds,
    hours,
    image_rate,
    shards_open,
    step,
)
from benchmarks.scaling.recipes import Learner, Teaching, finetuning, pretraining, teaching
from benchmarks.step_counts.recipes import SAMI
from benchmarks.step_counts.table import StepCounts, read_table

NODES = (1, 2, 4, 8, 16, 32, 64, 128)
# Measured at 224, batch 512: 1 s / 869.39 images less a student's 31.5 GFLOP at 270.5 TFLOP/s
TEACHER_RATE = 245.8e12
_OPERATIONS_A_LAUNCH = 3  # assumed of the teacher's compiled blocks
_IMAGENET = {"image_bytes": 110_000, "images_a_core": 1113, "shard_images": 1000}
_STORED_VIEW = 51_392  # bytes, int8
# packed with --long-side 1024: JPEG and run-lengths; 165.6 per second by two workers
_SA1B = {"image_bytes": 400_000, "images_a_core": 83, "shard_images": 11_185}
_FILE_SYSTEM = 10e9  # bytes per second above which reading needs attention
_HALF = 0.5  # of linear scaling
_NEARLY = 1.1  # times the shortest step
_FIRST_HEADING = "### Overview"


def works() -> list[Work]:
    """List all recipes with all sources of targets."""
    result = []
    teachers = {side: teaching(side) for side in (224, 1024)}
    for size in ("s", "ti"):
        learner = pretraining(size)
        for side, teacher in teachers.items():
            result.append(_pretraining(size, f"teacher online at {side}", learner, teacher))
        result.append(_pretraining(size, "stored features", learner, None))
    for size in ("ti", "s"):
        name, counts = f"Finetuning {size.capitalize()}", read_table("finetune-each", size)
        result.append(_work(name, counts, finetuning(size), None, _SA1B))
    return result


def _pretraining(size: str, target: str, learner: Learner, teacher: Teaching | None) -> Work:
    data = dict(_IMAGENET)
    data["image_bytes"] += _STORED_VIEW if teacher is None else 0
    name = f"Pretraining {size.capitalize()}, {target}"
    return _work(name, read_table(SAMI, size), learner, teacher, data)


def _work(
    name: str,
    counts: StepCounts,
    learner: Learner,
    teacher: Teaching | None,
    data: dict[str, int],
) -> Work:
    teacher_launches = 0 if teacher is None else teacher.operations // _OPERATIONS_A_LAUNCH
    return Work(
        name=name,
        flop=learner.flop,
        moved=1e9 * counts.image_gb,
        moved_once=1e9 * counts.step_gb,
        teacher_s=0.0 if teacher is None else teacher.flop / TEACHER_RATE,
        launches=counts.launches + teacher_launches,
        host_s=counts.host_ms / 1e3,
        weights=learner.weights,
        global_batch=learner.global_batch,
        micro_batch=learner.micro_batch,
        steps=learner.steps,
        **data,
    )


def time_table(work: Work, node: Node) -> str:
    """Table of step times, for each number of nodes that can split the batch."""
    head = ["nodes", "GPUs", "images a GPU", "FLOPs, ms", "memory, ms", "GPU, ms", "host, ms"]
    head += [
        "host, captured, ms",
        "DDP, ms",
        "FSDP2, ms",
        "step, ms",
        "under FSDP2, ms",
        "limit",
        "images/s",
        "of linear",
        "hours",
    ]
    rows, alone = [], _rate(work, 1, node)
    for nodes, result in _steps(work, node):
        rate = image_rate(work, result)
        parts = [result.flops, result.memory, result.computing, result.host]
        parts += [result.host_captured, result.ddp, result.fsdp]
        cells = [f"{nodes}", f"{nodes * node.gpus}", f"{result.images}"]
        cells += [f"{1e3 * s:.2f}" for s in (*parts, result.seconds, result.seconds_fsdp)]
        cells += [result.limit, f"{rate:,.0f}", f"{rate / nodes / alone:.0%}"]
        rows.append([*cells, f"{hours(work, result):.1f}"])
    return _markdown(head, rows)


def overview_table(all_works: Sequence[Work], node: Node) -> str:
    """Table of a GPU's step on one node, and of the hours on one node and on the fastest number."""
    head = ["recipe", "images a GPU", "FLOPs, ms", "memory, ms", "host, ms", "limit on one node"]
    head += ["images/s", "hours", "fastest", "hours there", "limit there"]
    rows = []
    for work in all_works:
        results = dict(_steps(work, node))
        single = results[1]
        # more nodes that save less than a tenth are not worth it
        best = next(n for n in NODES if n in results and _is_fast(work, results, n))
        cells = [work.name, f"{single.images}"]
        cells += [f"{1e3 * s:.1f}" for s in (single.flops, single.memory, single.host)]
        cells += [single.limit, f"{image_rate(work, single):,.0f}", f"{hours(work, single):.1f}"]
        cells += [f"{best} node{'s' if best > 1 else ''}", f"{hours(work, results[best]):.1f}"]
        rows.append([*cells, results[best].limit])
    return _markdown(head, rows)


def _is_fast(work: Work, results: dict[int, Step], nodes: int) -> bool:
    quickest = min(result.seconds for result in results.values())
    return results[nodes].seconds <= _NEARLY * quickest


def demands_table(work: Work, node: Node) -> str:
    """Table of the bytes to send and read, and of the images to decode."""
    head = ["nodes", "a GPU sends over NVLink, MB a step", "a node sends, MB a step"]
    head += ["the same under FSDP2", "a node reads, GB/s", "all read, GB/s"]
    head += ["decoding workers a GPU", "data.block_shards"]
    rows = []
    for nodes, result in _steps(work, node):
        rate = image_rate(work, result)
        reads = rate * work.image_bytes / 1e9
        sent = (result.gpu_sends, result.node_sends, result.node_sends_fsdp)
        rows.append(
            [
                f"{nodes}",
                *(f"{size / 1e6:,.0f}" for size in sent),
                f"{reads / nodes:.2f}",
                f"{reads:.1f}",
                f"{rate / nodes / node.gpus / work.images_a_core:.1f}",
                f"{shards_open(work, result, node)}",
            ]
        )
    return _markdown(head, rows)


def _steps(work: Work, node: Node) -> Iterator[tuple[int, Step]]:
    for nodes in NODES:
        result = step(work, nodes, node)
        if result is not None:
            yield nodes, result


def limits_table(all_works: Sequence[Work], node: Node) -> str:
    """Table of the first number of nodes at which each limit is reached."""
    head = ["recipe", "GPUs that the batch can feed", "the host takes longer than the GPU"]
    head += ["half of linear", "FSDP2 sends twice what DDP does"]
    head += ["reads above 10 GB/s", "decoding takes longer than the step"]
    rows = [[work.name, f"{work.global_batch}", *_firsts(work, node)] for work in all_works]
    return _markdown(head, rows)


def _firsts(work: Work, node: Node) -> list[str]:
    alone = _rate(work, 1, node)
    tests: list[Callable[[int, Step], bool]] = [
        lambda _, result: result.host > result.computing,
        lambda nodes, result: image_rate(work, result) < _HALF * alone * nodes,
        lambda _, result: result.node_sends_fsdp > 2 * result.node_sends,
        lambda _, result: image_rate(work, result) * work.image_bytes > _FILE_SYSTEM,
        lambda _, result: result.limit == "decoding",
    ]
    return [_first(work, node, test) for test in tests]


def _first(work: Work, node: Node, wrong: Callable[[int, Step], bool]) -> str:
    result = next((n for n, at in _steps(work, node) if wrong(n, at)), None)
    return "never" if result is None else f"{result} node{'s' if result > 1 else ''}"


def teacher_table(at_224: Teaching, at_1024: Teaching, batch: int, node: Node) -> str:
    """Table of the teacher's forward pass, and of gathering its weights if it is sharded."""
    head = ["nodes", "images a GPU", "forward at 224, ms", "at 1024, ms", "weights gathered, ms"]
    rows = []
    for nodes in NODES:
        images = batch // (nodes * node.gpus)
        rate = TEACHER_RATE
        gather = gathering_seconds(2 * at_224.numbers, _TEACHER_GROUPS, nodes, node)
        seconds = (images * at_224.flop / rate, images * at_1024.flop / rate, gather)
        rows.append([f"{nodes}", f"{images}", *(f"{1e3 * s:.1f}" for s in seconds)])
    return _markdown(head, rows)


_TEACHER_GROUPS = 33  # ViT-H's 32 blocks and the other modules


def checkpoint_table(learners: dict[str, Learner], node: Node) -> str:
    """Table of size and time of a checkpoint, written by one node."""
    head = ["", "parameters, M", "checkpoint, MB", "with EMA weights, MB", "written in, s"]
    rows = []
    for name, learner in learners.items():
        size, with_ema = (checkpoint_bytes(learner.weights, on) for on in (False, True))
        numbers = f"{learner.weights.learned() / 1e6:.1f}"
        cells = [f"{size / 1e6:.0f}", f"{with_ema / 1e6:.0f}", f"{with_ema / node.writing:.2f}"]
        rows.append([name, numbers, *cells])
    return _markdown(head, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Print all tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling.projection")
    parser.description = (__doc__ or "").splitlines()[0]
    parser.add_argument("--write", type=Path, help="a document whose tables are replaced")
    options = parser.parse_args(argv)
    printed = tables(Node())
    if options.write is None:
        print(printed)
        return 0
    text = options.write.read_text()
    options.write.write_text(f"{text[: text.index(_FIRST_HEADING)]}{printed}\n")
    return 0


def tables(node: Node) -> str:
    """Format all tables, as in docs/scaling.md."""
    result = works()
    shown = [work for work in result if not work.name.startswith("Pretraining Ti")]
    parts = [f"{_FIRST_HEADING}\n\n{overview_table(result, node)}"]
    for work in shown:
        teacher = f", teacher {1e3 * work.teacher_s:.2f} ms" if work.teacher_s else ""
        said = (
            f"An image: {work.flop / 1e9:,.1f} GFLOP, {work.moved / 1e9:.3g} GB{teacher}; "
            f"a step: {work.moved_once / 1e9:.3g} GB; a micro-batch: {work.launches:,} launches; "
            f"batch {work.global_batch}, up to {work.micro_batch} at once."
        )
        parts.append(f"### {work.name}\n\n{said}")
        parts += [time_table(work, node), demands_table(work, node)]
    parts.append(f"### Where it breaks\n\n{limits_table(result, node)}")
    batch = result[0].global_batch
    gathered = teacher_table(teaching(224), teaching(1024), batch, node)
    parts.append(f"### The teacher\n\n{gathered}")
    learners = {f"pretraining {size}": pretraining(size.lower()) for size in ("Ti", "S")}
    learners |= {f"finetuning {size}": finetuning(size.lower()) for size in ("Ti", "S")}
    parts.append(f"### Checkpoints\n\n{checkpoint_table(learners, node)}")
    return "\n\n".join(parts)


def _rate(work: Work, nodes: int, node: Node) -> float:
    result = step(work, nodes, node)
    assert result is not None, "one node shares every recipe's batch"
    return image_rate(work, result)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
