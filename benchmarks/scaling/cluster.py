"""A step on many nodes, from a few numbers: computing, Python, network, decoding.

Pure arithmetic. What is assumed is a default of `Node`; nothing of it was measured on a GPU.
"""

import math
from dataclasses import dataclass
from typing import Literal

from benchmarks.scaling.traffic import Payload, Weights, ddp, fsdp

_BF16 = 2  # bytes of a number when FSDP2 gathers a block in the recipes' precision
# Of a step the backward pass is two thirds, and DDP's sums run beside the last micro-batch's
_BACKWARD = 2 / 3


@dataclass(frozen=True, kw_only=True)
class Node:
    """Eight H200 in a DGX H200; bytes and operations a second, each way."""

    gpus: int = 8
    flops: float = 989e12  # of a GPU, dense bf16 (NVIDIA's H200 data sheet)
    nvlink: float = 450e9  # of a GPU: 900 GB/s both ways together (the same)
    network: float = 50e9  # of a GPU: a ConnectX-7 of 400 Gbit/s each (DGX H200 data sheet)
    reached: float = 0.8  # assumed: of both links' rates, by large collectives
    collective_s: float = 20e-6  # assumed: fixed time of a collective in a node
    hop_s: float = 10e-6  # assumed: more for each doubling of the nodes
    loop_s: float = 11e-3  # of a micro-batch, on a CPU (scaling.loop): all that is not the model's
    kernel_s: float = 5e-6  # assumed: to ask for a kernel
    operations_a_kernel: float = 3  # assumed: that torch.compile fuses
    decoding_cores: float = 12  # of a GPU: 112 cores a node (the same), two of 14 for the rest
    file_rate: float = 1e9  # assumed: read from one shard, whoever reads
    writing: float = 2e9  # assumed: to a shared file system


@dataclass(frozen=True, kw_only=True)
class Work:
    """A recipe and its data."""

    name: str
    parts: tuple[tuple[int, float], ...]  # FLOPs of a photo, and the share of `flops` they reach
    operations: int  # of a micro-batch
    weights: Weights
    global_batch: int
    micro_batch: int  # at most; a rank's share of the batch is cut into equal ones
    steps: int
    image_bytes: int  # read for a sample, stored features included
    images_a_core: float  # decoded a second by one worker
    shard_images: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step costs; seconds."""

    photos: int  # of a GPU
    computing: float
    python: float  # the training loop's, and asking for kernels, beside which a GPU computes
    ddp: float  # of all its collectives, were they alone
    fsdp: float
    seconds: float  # of the whole step under DDP
    seconds_fsdp: float
    decoding: float  # of a GPU's photos by its cores
    gpu_sends: float  # bytes over NVLink, under DDP
    node_sends: float  # bytes over the network, under DDP
    node_sends_fsdp: float
    limit: Literal["computing", "Python", "network", "decoding"]


def step(work: Work, nodes: int, node: Node) -> Step | None:
    """A step, or None where the global batch cannot be shared by so many GPUs."""
    ranks = nodes * node.gpus
    if work.global_batch % ranks:
        return None
    photos = work.global_batch // ranks
    at_once = max(n for n in range(1, min(photos, work.micro_batch) + 1) if photos % n == 0)
    turns = photos // at_once
    computing = photos * sum(flop / (share * node.flops) for flop, share in work.parts)
    context = work.operations / node.operations_a_kernel * node.kernel_s
    python = turns * (node.loop_s + context)
    busy = max(computing, python)
    decoding = photos / (work.images_a_core * node.decoding_cores)
    plain = ddp(work.weights)
    sums = network_seconds(plain, nodes, node)
    shards = turns_of(fsdp(work.weights, ranks, _BF16), turns)
    sharded = network_seconds(shards, nodes, node)
    waiting = max(0.0, sums - _BACKWARD * busy / turns)
    seconds = max(busy + waiting, decoding)
    if decoding > busy + waiting:
        limit: Literal["computing", "Python", "network", "decoding"] = "decoding"
    elif waiting > busy:
        limit = "network"
    else:
        limit = "Python" if python > computing else "computing"
    return Step(
        photos=photos,
        computing=computing,
        python=python,
        ddp=sums,
        fsdp=sharded,
        seconds=seconds,
        seconds_fsdp=max(busy, sharded, decoding),  # gathered ahead, while blocks are computed
        decoding=decoding,
        gpu_sends=plain.sent(node.gpus),
        node_sends=plain.sent(nodes),
        node_sends_fsdp=shards.sent(nodes),
        limit=limit,
    )


def turns_of(payload: Payload, turns: int) -> Payload:
    """FSDP2's, where so many micro-batches make a step: gathered for each, reduced once."""
    gathers = {"all_gather": turns}
    return Payload(
        {kind: count * gathers.get(kind, 1) for kind, count in payload.calls.items()},
        {kind: size * gathers.get(kind, 1) for kind, size in payload.bytes.items()},
    )


def network_seconds(payload: Payload, nodes: int, node: Node) -> float:
    """Of collectives one after the other, each cut into pieces that use both links at once.

    Every GPU passes the whole through its NVLink; of what leaves a node each sends its eighth.
    """
    within = payload.sent(node.gpus) / node.nvlink
    between = payload.sent(nodes) / node.gpus / node.network
    fixed = node.collective_s + node.hop_s * math.log2(nodes)
    return max(within, between) / node.reached + fixed * sum(payload.calls.values())


def gathering_seconds(size: float, calls: int, nodes: int, node: Node) -> float:
    """Of weights that are gathered once, as a sharded teacher's."""
    payload = Payload({"all_gather": calls}, {"all_gather": int(size)})
    return network_seconds(payload, nodes, node)


def image_rate(work: Work, found: Step) -> float:
    """Photos a second, all GPUs together, under DDP."""
    return work.global_batch / found.seconds


def hours(work: Work, found: Step) -> float:
    """Of the whole recipe."""
    return work.steps * found.seconds / 3600


def shards_open(work: Work, found: Step, node: Node) -> int:
    """`data.block_shards`: shards that must be read at a time.

    Enough that no file is asked for more than it gives, and that a step's photos come from a pool
    eight times as large.
    """
    of_rate = image_rate(work, found) * work.image_bytes / node.file_rate
    of_pool = 8 * work.global_batch / work.shard_images
    return math.ceil(max(of_rate, of_pool, 8))


def checkpoint_bytes(weights: Weights, averaged: bool = False) -> int:
    """Weights and AdamW's two moments, in float32; and averaged weights."""
    return 4 * weights.learned() * (4 if averaged else 3)
