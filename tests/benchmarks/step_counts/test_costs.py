"""Launches and bytes of single operations and of a compiled region, worked out by hand."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from benchmarks.step_counts.costs import list_launches
from benchmarks.step_counts.counter import OperationCounter
from benchmarks.step_counts.stub_backend import StubBackend, compiling_with

FLOAT = 4  # bytes
LENGTH = 1024


def counted(function: Callable[[], object]) -> OperationCounter:
    with OperationCounter() as counter:
        function()
    return counter


def bytes_of(function: Callable[[], object]) -> int:
    return counted(function).bytes.total()


def test_every_second_column_is_read_and_no_more() -> None:
    table = torch.ones(6, 10)
    assert bytes_of(table[:, ::2].neg) == FLOAT * (30 + 30)


def test_a_row_given_to_all_rows_is_read_once() -> None:
    table, row = torch.ones(6, 10), torch.ones(10)
    assert bytes_of(lambda: table + row.expand(6, 10)) == FLOAT * (60 + 10 + 60)


def test_a_change_in_place_reads_and_writes_and_an_overwriting_one_only_writes() -> None:
    table, other = torch.ones(60), torch.ones(60)
    assert bytes_of(lambda: table.add_(other)) == FLOAT * (60 + 60 + 60)
    assert bytes_of(lambda: table.copy_(other)) == FLOAT * (60 + 60)
    assert bytes_of(table.zero_) == FLOAT * 60
    assert bytes_of(lambda: torch.neg(other, out=table)) == FLOAT * (60 + 60)


def test_lists_are_read_and_written_and_launched_in_sets_of_tensors() -> None:
    """One list: 110 tensors of less than a chunk fill a launch."""
    tensors = [torch.ones(10) for _ in range(111)]
    counter = counted(lambda: torch._foreach_mul_(tensors, 2.0))
    assert counter.launches.total() == 2
    assert counter.bytes.total() == FLOAT * 111 * (10 + 10)


def test_a_launch_on_lists_is_full_of_chunks_or_of_tensors() -> None:
    """65,536 values are a chunk, of which a launch has 320; of four lists it has 36 tensors."""
    assert list_launches([65536 * 320], depth=1) == 1
    assert list_launches([65536 * 320 + 1], depth=1) == 2
    assert list_launches([1] * 36, depth=4) == 1
    assert list_launches([1] * 37, depth=4) == 2
    assert list_launches([0, 0], depth=2) == 0
    # the second tensor begins in the first launch, and is one of the second's 110 tensors
    assert list_launches([65536 * 319, 65536 * 2, *[1] * 109], depth=1) == 2
    assert list_launches([65536 * 319, 65536 * 2, *[1] * 110], depth=1) == 3


def test_adamw_reads_four_numbers_a_parameter_and_writes_three() -> None:
    parameter = torch.nn.Parameter(torch.ones(1000))
    parameter.grad = torch.ones(1000)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    optimizer.step()  # makes the moments
    with OperationCounter() as counter:
        optimizer.step()
    steps = 3 * FLOAT  # read and written when counted up, read by the update
    assert counter.bytes.total() - FLOAT * 7000 <= 2 * steps
    assert counter.launches.total() == 2


@pytest.fixture
def doubled() -> Iterator[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """A kernel of our own: of a table and a row, the table plus the row and its sums."""
    with torch.library._scoped_library("efficientsam_pl", "FRAGMENT"):

        @torch.library.custom_op("efficientsam_pl::toy_sums", mutates_args=())
        def toy_sums(table: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            summed = table + row
            return summed, summed.sum(1)

        @toy_sums.register_fake
        def _(table: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            return torch.empty_like(table), table.new_empty(table.shape[0])

        if torch.ops.efficientsam_pl.toy_sums not in torch.utils.flop_counter.flop_registry:

            @register_flop_formula(torch.ops.efficientsam_pl.toy_sums)
            def _(table: tuple[int, int], row: tuple[int], **_: object) -> int:
                return 2 * table[0] * table[1]

        torch._dynamo.reset()
        yield toy_sums
        torch._dynamo.reset()


BY_HAND = FLOAT * (64 * LENGTH + LENGTH + 64 * LENGTH + 64)


def test_a_kernel_of_our_own_is_one_launch_that_reads_and_writes_once(
    doubled: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> None:
    counter = counted(lambda: doubled(torch.ones(64, LENGTH), torch.ones(LENGTH)))
    made = FLOAT * (64 * LENGTH + LENGTH)  # the two inputs, each by a launch
    assert counter.launches.total() - 2 == 1
    assert counter.bytes.total() - made == BY_HAND
    assert sum(counter.flop.values()) == 2 * 64 * LENGTH


def test_a_compiled_region_calls_it_as_one_launch_with_the_same_bytes(
    doubled: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> None:
    """Beside it two Triton kernels: a sine before it, a product of both results after it."""
    pytest.importorskip("triton")

    def region(table: Tensor, row: Tensor) -> Tensor:
        summed, sums = doubled(table.sin(), row)
        return summed * sums[:, None]

    backend = StubBackend(OperationCounter(), lower=True)
    with compiling_with(backend):
        torch.compile(region)(torch.ones(64, LENGTH), torch.ones(LENGTH))
    [(_, counts)] = backend.regions
    table = FLOAT * 64 * LENGTH
    assert (counts.triton, counts.library) == (2, 1)
    assert counts.bytes == 2 * table + BY_HAND + (table + FLOAT * 64 + table)


def test_a_region_reads_a_repeated_row_once() -> None:
    pytest.importorskip("triton")
    torch._dynamo.reset()
    backend = StubBackend(OperationCounter(), lower=True)
    with compiling_with(backend):
        repeated = torch.ones(LENGTH).expand(64, LENGTH)
        torch.compile(lambda table, row: (table + row).sin())(torch.ones(64, LENGTH), repeated)
    torch._dynamo.reset()
    [(_, counts)] = backend.regions
    assert counts.bytes == FLOAT * (64 * LENGTH + LENGTH + 64 * LENGTH)
