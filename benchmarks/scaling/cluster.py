"""Model of a step on many nodes: FLOPs, memory, host, network, decoding.

Pure arithmetic. Assumptions are the defaults of `Node`.
"""

import math
from dataclasses import dataclass
from typing import Literal

from benchmarks.scaling.traffic import Payload, Weights, ddp, fsdp

Limit = Literal["FLOPs", "memory", "teacher", "host", "network", "decoding"]

_BF16 = 2  # bytes per parameter when FSDP2 gathers a block in the recipes' precision
# The backward pass is two thirds of a step, and DDP's reductions overlap the last micro-batch's
_BACKWARD = 2 / 3


@dataclass(frozen=True, kw_only=True)
class Node:
    """A DGX H200 with eight H200; bytes and operations per second, each way."""

    gpus: int = 8
    flops: float = 790e12  # per GPU, measured: a large bf16 product
    memory: float = 4.3e12  # per GPU, measured: a copy, read and written
    memory_reached: float = 0.5  # measured: its share reached by the kernels of a step
    nvlink: float = 450e9  # per GPU: 900 GB/s both ways together (NVIDIA's H200 data sheet)
    network: float = 50e9  # per GPU: a ConnectX-7 of 400 Gbit/s (DGX H200 data sheet)
    reached: float = 0.8  # assumed: share of both links' rates achieved by large collectives
    collective_s: float = 20e-6  # assumed: fixed time of a collective in a node
    hop_s: float = 10e-6  # assumed: additional time for each doubling of the nodes
    launch_s: float = 5e-6  # assumed: of the host, for a kernel
    decoding_cores: float = 12  # per GPU: 112 cores per node (same source), two of 14 for the rest
    file_rate: float = 1e9  # assumed: from one shard, for all readers together
    writing: float = 2e9  # assumed: to a shared file system


@dataclass(frozen=True, kw_only=True)
class Work:
    """A recipe and its data."""

    name: str
    flop: float  # of an image, trained model only
    moved: float  # bytes read and written by the kernels for an image
    moved_once: float  # by those of the optimizer, per step
    teacher_s: float  # of an image
    launches: int  # per micro-batch
    host_s: float  # per micro-batch, of everything but these launches
    weights: Weights
    global_batch: int
    micro_batch: int  # maximum; a rank's part of the batch is split into equal ones
    steps: int
    image_bytes: int  # read per sample, including stored features
    images_a_core: float  # decoded per second by one worker
    shard_images: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """Cost of a step, in seconds."""

    images: int  # per GPU
    flops: float  # of the FLOPs alone
    memory: float  # of the bytes alone
    computing: float  # the longer of both, and the teacher
    host: float  # loop and launches, concurrent with the GPU
    host_captured: float  # with the launches of a micro-batch captured as one graph
    ddp: float  # of all its collectives without overlap
    fsdp: float
    seconds: float  # of the whole step under DDP
    seconds_fsdp: float
    decoding: float  # of a GPU's images on its cores
    gpu_sends: float  # bytes over NVLink, under DDP
    node_sends: float  # bytes over the network, under DDP
    node_sends_fsdp: float
    limit: Limit


def step(work: Work, nodes: int, node: Node) -> Step | None:
    """Model a step; None if the global batch cannot be split over the GPUs."""
    ranks = nodes * node.gpus
    if work.global_batch % ranks:
        return None
    images = work.global_batch // ranks
    at_once = max(n for n in range(1, min(images, work.micro_batch) + 1) if images % n == 0)
    turns = images // at_once
    flops, memory = images * work.flop / node.flops, memory_seconds(work, images, node)
    teacher = images * work.teacher_s
    computing = max(flops, memory) + teacher
    host = turns * (work.host_s + work.launches * node.launch_s)
    busy = max(computing, host)
    decoding = images / (work.images_a_core * node.decoding_cores)
    plain = ddp(work.weights)
    sums = network_seconds(plain, nodes, node)
    shards = turns_of(fsdp(work.weights, ranks, _BF16), turns)
    sharded = network_seconds(shards, nodes, node)
    waiting = max(0.0, sums - _BACKWARD * busy / turns)
    longest: dict[Limit, float] = {
        "FLOPs": flops,
        "memory": memory,
        "teacher": teacher,
    }
    limit: Limit = max(longest, key=lambda name: longest[name])
    if host > computing:
        limit = "host"
    if waiting > busy:
        limit = "network"
    if decoding > busy + waiting:
        limit = "decoding"
    return Step(
        images=images,
        flops=flops,
        memory=memory,
        computing=computing,
        host=host,
        host_captured=turns * work.host_s,
        ddp=sums,
        fsdp=sharded,
        seconds=max(busy + waiting, decoding),
        seconds_fsdp=max(busy, sharded, decoding),  # gathered ahead while blocks are computed
        decoding=decoding,
        gpu_sends=plain.sent(node.gpus),
        node_sends=plain.sent(nodes),
        node_sends_fsdp=shards.sent(nodes),
        limit=limit,
    )


def memory_seconds(work: Work, images: int, node: Node) -> float:
    """Time of a GPU's memory traffic in a step."""
    return (images * work.moved + work.moved_once) / (node.memory * node.memory_reached)


def turns_of(payload: Payload, turns: int) -> Payload:
    """Communication of FSDP2: gathered for each micro-batch, reduced once per step."""
    gathers = {"all_gather": turns}
    return Payload(
        {kind: count * gathers.get(kind, 1) for kind, count in payload.calls.items()},
        {kind: size * gathers.get(kind, 1) for kind, size in payload.bytes.items()},
    )


def network_seconds(payload: Payload, nodes: int, node: Node) -> float:
    """Time of sequential collectives, each chunked to use both links at once.

    Every GPU passes everything through its NVLink, and sends an eighth of what leaves its node.
    """
    within = payload.sent(node.gpus) / node.nvlink
    between = payload.sent(nodes) / node.gpus / node.network
    fixed = node.collective_s + node.hop_s * math.log2(nodes)
    return max(within, between) / node.reached + fixed * sum(payload.calls.values())


def gathering_seconds(size: float, calls: int, nodes: int, node: Node) -> float:
    """Time of gathering weights once, as of a sharded teacher."""
    payload = Payload({"all_gather": calls}, {"all_gather": int(size)})
    return network_seconds(payload, nodes, node)


def image_rate(work: Work, at: Step) -> float:
    """Images per second of all GPUs under DDP."""
    return work.global_batch / at.seconds


def hours(work: Work, at: Step) -> float:
    """Hours of the whole recipe."""
    return work.steps * at.seconds / 3600


def shards_open(work: Work, at: Step, node: Node) -> int:
    """Compute how many shards to read at a time (`data.block_shards`).

    Enough that no file exceeds its read rate, and that a step's images come from a pool eight times
    as large.
    """
    of_rate = image_rate(work, at) * work.image_bytes / node.file_rate
    of_pool = 8 * work.global_batch / work.shard_images
    return math.ceil(max(of_rate, of_pool, 8))


def checkpoint_bytes(weights: Weights, with_ema: bool = False) -> int:
    """Bytes of weights and AdamW's two moments in float32, optionally with EMA weights."""
    return 4 * weights.learned() * (4 if with_ema else 3)
