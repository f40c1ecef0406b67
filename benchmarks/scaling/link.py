"""Measure the latency and bandwidth of a gloo all-reduce between two ranks.

Started by `benchmarks.scaling`: python -m benchmarks.scaling.link RANK STORE prints `Link` as one
line of JSON on rank 0.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

_FEW, _MANY = 1, 2**24  # float32 values per all-reduce
_ROUNDS, _LARGE_ROUNDS = 50, 5


@dataclass(frozen=True)
class Link:
    """Linear model from two sizes: seconds = fixed + bytes that a rank sends / rate."""

    fixed: float  # seconds per collective
    rate: float  # bytes per second

    def seconds(self, calls: int, sent: float) -> float:
        """Time of sequential collectives."""
        return self.fixed * calls + sent / self.rate


def fitted(few: float, many: float, sent: float) -> Link:
    """Fit latency and rate to a small and a large all-reduce.

    Args:
        few: Seconds of the small one.
        many: Seconds of the large one.
        sent: Bytes that a rank sends for the large one.
    """
    return Link(few, sent / (many - few))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as one of two ranks with one thread each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling.link")
    parser.description = (__doc__ or "").splitlines()[0]
    parser.add_argument("rank", type=int, choices=(0, 1))
    parser.add_argument("store", type=Path, help="a file that does not exist, the same for both")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    store = f"file://{options.store}"
    dist.init_process_group("gloo", init_method=store, rank=options.rank, world_size=2)
    few, many = (_seconds(*case) for case in ((_FEW, _ROUNDS), (_MANY, _LARGE_ROUNDS)))
    dist.destroy_process_group()
    if options.rank == 0:
        # in a ring of two ranks each sends as many bytes as the tensor has
        print(json.dumps(asdict(fitted(few, many, 4 * _MANY))), flush=True)
    return 0


def _seconds(numbers: int, rounds: int) -> float:
    """Median time of an all-reduce, after two warm-up calls."""
    tensor, taken = torch.ones(numbers), []
    for _ in range(rounds + 2):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(tensor)
        taken.append(time.perf_counter() - start)
        tensor.fill_(1.0)
    return statistics.median(taken[2:])


if __name__ == "__main__":
    sys.exit(main())
