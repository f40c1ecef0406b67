"""How long two ranks take over gloo, whatever they compute: a collective's fixed time and rate.

python -m benchmarks.scaling_link RANK STORE writes `Link` as one line of JSON, from rank 0.
"""

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

_FEW, _MANY = 1, 2**24  # float32 numbers in a sum over the ranks
_ROUNDS, _LARGE_ROUNDS = 50, 5


@dataclass(frozen=True)
class Link:
    """Fitted to two sizes: seconds = fixed + bytes that a rank sends / rate."""

    fixed: float  # seconds a collective
    rate: float  # bytes a second

    def seconds(self, calls: int, sent: float) -> float:
        """Of so many collectives one after the other."""
        return self.fixed * calls + sent / self.rate


def fitted(few: float, many: float, sent: float) -> Link:
    """The line through a sum of hardly any bytes and one of many.

    Args:
        few: Seconds of the small one.
        many: Seconds of the large one.
        sent: Bytes that a rank sends for the large one.
    """
    return Link(few, sent / (many - few))


def main(rank: str, store: str) -> None:
    """Measures as one of two ranks, one thread each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
    few, many = (_seconds(*case) for case in ((_FEW, _ROUNDS), (_MANY, _LARGE_ROUNDS)))
    dist.destroy_process_group()
    if rank == "0":
        # of a sum over two ranks in a ring each sends as much as there is
        print(json.dumps(asdict(fitted(few, many, 4 * _MANY))), flush=True)


def _seconds(numbers: int, rounds: int) -> float:
    """The median of so many sums, after two that warm up."""
    tensor, taken = torch.ones(numbers), []
    for _ in range(rounds + 2):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(tensor)
        taken.append(time.perf_counter() - start)
        tensor.fill_(1.0)
    return statistics.median(taken[2:])


if __name__ == "__main__":
    main(*sys.argv[1:])
