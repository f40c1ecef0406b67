"""Project both stages onto 1 to 128 nodes of eight H200: the tables of docs/scaling.md.

`Node`'s defaults are the assumptions; FLOPs and shapes are counted by torch, bytes of images and
decoding rates were measured (benchmarks/results/data.md and sami.md), the MFU on one H200 (gpu.md).
Several GPUs were not measured.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

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

NODES = (1, 2, 4, 8, 16, 32, 64, 128)
# Of 989 TFLOP/s, by model, loss and optimizer alone on one H200 (benchmarks/results/gpu.md)
SHARES = {
    "pretrain ti": 0.205,  # assumed: its goal, 0.24, times S's share of its goal, 0.855
    "pretrain s": 270.5 / 989,  # measured, stored features, batch 4096
    "finetune ti": 116.4 / 989,  # measured, 32 boxes per image in one round, batch 16
    "finetune s": 177.0 / 989,  # measured likewise
}
# Measured at 224, batch 512: 1 s / 869.39 images less a student's 31.5 GFLOP at 270.5 TFLOP/s
_TEACHER_SHARE = 245.8 / 989
_IMAGENET = {"image_bytes": 110_000, "images_a_core": 1113, "shard_images": 1000}
_STORED_VIEW = 51_392  # bytes, int8
# packed with --long-side 1024: JPEG and run-lengths; 165.6 per second by two workers
_SA1B = {"image_bytes": 400_000, "images_a_core": 83, "shard_images": 11_185}
_FILE_SYSTEM = 10e9  # bytes per second above which reading needs attention
_HALF = 0.5  # of linear scaling


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
        learner = finetuning(size)
        share = SHARES[f"finetune {size}"]
        name = f"Finetuning {size.capitalize()}"
        result.append(_work(name, ((learner.flop, share),), learner.operations, learner, _SA1B))
    return result


def _pretraining(size: str, target: str, learner: Learner, teacher: Teaching | None) -> Work:
    parts: tuple[tuple[int, float], ...] = ((learner.flop, SHARES[f"pretrain {size}"]),)
    data = dict(_IMAGENET)
    operations = learner.operations
    if teacher is None:
        data["image_bytes"] += _STORED_VIEW
    else:
        parts += ((teacher.flop, _TEACHER_SHARE),)
        operations += teacher.operations
    return _work(f"Pretraining {size.capitalize()}, {target}", parts, operations, learner, data)


def _work(
    name: str,
    parts: tuple[tuple[int, float], ...],
    operations: int,
    learner: Learner,
    data: dict[str, int],
) -> Work:
    return Work(
        name=name,
        parts=parts,
        operations=operations,
        weights=learner.weights,
        global_batch=learner.global_batch,
        micro_batch=learner.micro_batch,
        steps=learner.steps,
        **data,
    )


def time_table(work: Work, node: Node) -> str:
    """Table of step times, for each number of nodes that can split the batch."""
    head = ["nodes", "GPUs", "images a GPU", "computing, ms", "Python, ms", "DDP, ms", "FSDP2, ms"]
    head += ["step, ms", "under FSDP2, ms", "limit", "images/s", "of linear", "hours"]
    rows, alone = [], _rate(work, 1, node)
    for nodes, result in _steps(work, node):
        rate = image_rate(work, result)
        parts = (result.computing, result.python, result.ddp, result.fsdp)
        cells = [f"{nodes}", f"{nodes * node.gpus}", f"{result.images}"]
        cells += [f"{1e3 * s:.2f}" for s in (*parts, result.seconds, result.seconds_fsdp)]
        cells += [result.limit, f"{rate:,.0f}", f"{rate / nodes / alone:.0%}"]
        rows.append([*cells, f"{hours(work, result):.1f}"])
    return _markdown(head, rows)


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
    head = ["recipe", "GPUs that the batch can feed", "Python takes longer than computing"]
    head += ["half of linear", "FSDP2 sends twice what DDP does"]
    head += ["reads above 10 GB/s", "decoding takes longer than the step"]
    rows = [[work.name, f"{work.global_batch}", *_firsts(work, node)] for work in all_works]
    return _markdown(head, rows)


def _firsts(work: Work, node: Node) -> list[str]:
    alone = _rate(work, 1, node)
    tests: list[Callable[[int, Step], bool]] = [
        lambda _, result: result.python > result.computing,
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
        rate = node.flops * _TEACHER_SHARE
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
    parser.parse_args(argv)
    print(tables(Node()))
    return 0


def tables(node: Node) -> str:
    """Format all tables, as in docs/scaling.md."""
    result = works()
    shown = [work for work in result if not work.name.startswith("Pretraining Ti")]
    parts = []
    for work in shown:
        flop = ", ".join(f"{f / 1e9:,.1f} at {share:.0%} MFU" for f, share in work.parts)
        said = (
            f"GFLOP per image: {flop}; batch {work.global_batch}, up to {work.micro_batch} at once."
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
