"""Project both stages onto 1 to 128 nodes of eight H200: the tables of docs/scaling.md.

`Node`'s defaults are the assumptions; FLOPs and shapes are counted by torch, bytes of photos and
decoding rates were measured (benchmarks/results/data.md and sami.md), the shares of a GPU's peak on
one H200 (gpu.md). No two GPUs were.
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
    "pretrain ti": 0.205,  # assumed: 0.24, its goal, times what S reached of its own, 0.855
    "pretrain s": 270.5 / 989,  # measured, stored features, batch 4096
    "finetune ti": 116.4 / 989,  # measured, 32 boxes a photo in one round, batch 16
    "finetune s": 177.0 / 989,  # measured likewise
}
# Measured at 224, batch 512: 1 s / 869.39 photos less a student's 31.5 GFLOP at 270.5 TFLOP/s
_TEACHER_SHARE = 245.8 / 989
_IMAGENET = {"photo_bytes": 110_000, "photos_a_core": 1113, "shard_photos": 1000}
_STORED_VIEW = 51_392  # bytes, int8
# packed with --long-side 1024: JPEG and run-lengths; 165.6 a second by two workers
_SA1B = {"photo_bytes": 400_000, "photos_a_core": 83, "shard_photos": 11_185}
_FILE_SYSTEM = 10e9  # bytes a second, to say where reading becomes a matter of its own
_HALF = 0.5  # of the rate that as many single nodes would have


def works() -> list[Work]:
    """All recipes with all ways to get targets."""
    found = []
    teachers = {side: teaching(side) for side in (224, 1024)}
    for size in ("s", "ti"):
        learner = pretraining(size)
        for side, teacher in teachers.items():
            found.append(_pretraining(size, f"teacher online at {side}", learner, teacher))
        found.append(_pretraining(size, "stored features", learner, None))
    for size in ("ti", "s"):
        learner = finetuning(size)
        share = SHARES[f"finetune {size}"]
        name = f"Finetuning {size.capitalize()}"
        found.append(_work(name, ((learner.flop, share),), learner.operations, learner, _SA1B))
    return found


def _pretraining(size: str, told: str, learner: Learner, teacher: Teaching | None) -> Work:
    parts: tuple[tuple[int, float], ...] = ((learner.flop, SHARES[f"pretrain {size}"]),)
    data = dict(_IMAGENET)
    operations = learner.operations
    if teacher is None:
        data["photo_bytes"] += _STORED_VIEW
    else:
        parts += ((teacher.flop, _TEACHER_SHARE),)
        operations += teacher.operations
    return _work(f"Pretraining {size.capitalize()}, {told}", parts, operations, learner, data)


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
    """What a step takes; a row for each number of nodes that can share the batch."""
    head = ["nodes", "GPUs", "photos a GPU", "computing, ms", "Python, ms", "DDP, ms", "FSDP2, ms"]
    head += ["step, ms", "under FSDP2, ms", "limit", "photos/s", "of linear", "hours"]
    rows, alone = [], _rate(work, 1, node)
    for nodes, found in _steps(work, node):
        rate = image_rate(work, found)
        parts = (found.computing, found.python, found.ddp, found.fsdp)
        cells = [f"{nodes}", f"{nodes * node.gpus}", f"{found.photos}"]
        cells += [f"{1e3 * s:.2f}" for s in (*parts, found.seconds, found.seconds_fsdp)]
        cells += [found.limit, f"{rate:,.0f}", f"{rate / nodes / alone:.0%}"]
        rows.append([*cells, f"{hours(work, found):.1f}"])
    return _markdown(head, rows)


def demands_table(work: Work, node: Node) -> str:
    """What must be carried, read and decoded to keep that step."""
    head = ["nodes", "a GPU sends over NVLink, MB a step", "a node sends, MB a step"]
    head += ["the same under FSDP2", "a node reads, GB/s", "all read, GB/s"]
    head += ["decoding workers a GPU", "data.block_shards"]
    rows = []
    for nodes, found in _steps(work, node):
        rate = image_rate(work, found)
        reads = rate * work.image_bytes / 1e9
        sent = (found.gpu_sends, found.node_sends, found.node_sends_fsdp)
        rows.append(
            [
                f"{nodes}",
                *(f"{size / 1e6:,.0f}" for size in sent),
                f"{reads / nodes:.2f}",
                f"{reads:.1f}",
                f"{rate / nodes / node.gpus / work.images_a_core:.1f}",
                f"{shards_open(work, found, node)}",
            ]
        )
    return _markdown(head, rows)


def _steps(work: Work, node: Node) -> Iterator[tuple[int, Step]]:
    for nodes in NODES:
        found = step(work, nodes, node)
        if found is not None:
            yield nodes, found


def limits_table(all_works: Sequence[Work], node: Node) -> str:
    """The first number of nodes at which each thing goes wrong."""
    head = ["recipe", "GPUs that the batch can feed", "Python takes longer than computing"]
    head += ["half of linear", "FSDP2 sends twice what DDP does"]
    head += ["reads above 10 GB/s", "decoding takes longer than the step"]
    rows = [[work.name, f"{work.global_batch}", *_firsts(work, node)] for work in all_works]
    return _markdown(head, rows)


def _firsts(work: Work, node: Node) -> list[str]:
    alone = _rate(work, 1, node)
    tests: list[Callable[[int, Step], bool]] = [
        lambda _, found: found.python > found.computing,
        lambda nodes, found: image_rate(work, found) < _HALF * alone * nodes,
        lambda _, found: found.node_sends_fsdp > 2 * found.node_sends,
        lambda _, found: image_rate(work, found) * work.image_bytes > _FILE_SYSTEM,
        lambda _, found: found.limit == "decoding",
    ]
    return [_first(work, node, test) for test in tests]


def _first(work: Work, node: Node, wrong: Callable[[int, Step], bool]) -> str:
    found = next((n for n, at in _steps(work, node) if wrong(n, at)), None)
    return "never" if found is None else f"{found} node{'s' if found > 1 else ''}"


def teacher_table(at_224: Teaching, at_1024: Teaching, batch: int, node: Node) -> str:
    """The teacher's forward pass on a GPU's photos, and gathering its weights if it is sharded."""
    head = ["nodes", "photos a GPU", "forward at 224, ms", "at 1024, ms", "weights gathered, ms"]
    rows = []
    for nodes in NODES:
        photos = batch // (nodes * node.gpus)
        rate = node.flops * _TEACHER_SHARE
        gather = gathering_seconds(2 * at_224.numbers, _TEACHER_GROUPS, nodes, node)
        seconds = (photos * at_224.flop / rate, photos * at_1024.flop / rate, gather)
        rows.append([f"{nodes}", f"{photos}", *(f"{1e3 * s:.1f}" for s in seconds)])
    return _markdown(head, rows)


_TEACHER_GROUPS = 33  # ViT-H's 32 blocks and what lies around them


def checkpoint_table(learners: dict[str, Learner], node: Node) -> str:
    """Size and time of a checkpoint, written by one node."""
    head = ["", "parameters, M", "checkpoint, MB", "with averaged weights, MB", "written in, s"]
    rows = []
    for name, learner in learners.items():
        size, averaged = (checkpoint_bytes(learner.weights, on) for on in (False, True))
        numbers = f"{learner.weights.learned() / 1e6:.1f}"
        cells = [f"{size / 1e6:.0f}", f"{averaged / 1e6:.0f}", f"{averaged / node.writing:.2f}"]
        rows.append([name, numbers, *cells])
    return _markdown(head, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints all tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling.projection")
    parser.description = (__doc__ or "").splitlines()[0]
    parser.parse_args(argv)
    print(tables(Node()))
    return 0


def tables(node: Node) -> str:
    """What docs/scaling.md holds."""
    found = works()
    shown = [work for work in found if not work.name.startswith("Pretraining Ti")]
    parts = []
    for work in shown:
        flop = ", ".join(f"{f / 1e9:,.1f} at {share:.0%} MFU" for f, share in work.parts)
        said = (
            f"GFLOP a photo: {flop}; batch {work.global_batch}, up to {work.micro_batch} at once."
        )
        parts.append(f"### {work.name}\n\n{said}")
        parts += [time_table(work, node), demands_table(work, node)]
    parts.append(f"### Where it breaks\n\n{limits_table(found, node)}")
    batch = found[0].global_batch
    gathered = teacher_table(teaching(224), teaching(1024), batch, node)
    parts.append(f"### The teacher\n\n{gathered}")
    learners = {f"pretraining {size}": pretraining(size.lower()) for size in ("Ti", "S")}
    learners |= {f"finetuning {size}": finetuning(size.lower()) for size in ("Ti", "S")}
    parts.append(f"### Checkpoints\n\n{checkpoint_table(learners, node)}")
    return "\n\n".join(parts)


def _rate(work: Work, nodes: int, node: Node) -> float:
    found = step(work, nodes, node)
    assert found is not None, "one node shares every recipe's batch"
    return image_rate(work, found)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
