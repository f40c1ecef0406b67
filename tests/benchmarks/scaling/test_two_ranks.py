"""Bytes by hand, by torch's dispatcher and by the kernel; rows that add up."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.harness import Options
from benchmarks.scaling import two_ranks as scaling
from benchmarks.scaling.collectives import Collectives, kind_of, sent_bytes
from benchmarks.scaling.inputs import LEAST, write_configs, write_images
from benchmarks.scaling.link import Link, fitted
from benchmarks.scaling.timed_run import Record, weights_of
from benchmarks.scaling.traffic import Payload, Weights, ddp, fsdp, padded, through_gloo
from efficientsam_pl.models.config import EncoderConfig, SamiConfig
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.training.parallelize import apply_fsdp

# two units of a 6 x 4 matrix and its bias, a vector that learns and one that does not
WEIGHTS = Weights(units=(((6, 4), (6,)),) * 2, learning=((3,),), frozen=((1, 5),))


def test_ddp_sends_every_learning_number_once_in_float32() -> None:
    """2 * 30 + 3 numbers of 4 bytes, and a step's three sums."""
    payload = ddp(WEIGHTS)
    assert WEIGHTS.learned() == 63
    assert payload.bytes == {"all_reduce": 4 * 63 + 12}
    assert payload.sent(2) == 264  # 2 (2 - 1) / 2
    assert payload.sent(4) == 396  # 2 (4 - 1) / 4
    assert payload.sent(1) == 0


def test_rows_are_filled_up_to_the_ranks() -> None:
    """6 rows on 4 ranks are 2 a rank, 8 in all; one row on 4 ranks is 4; a number likewise."""
    assert padded([(6, 4)], 2) == 24
    assert padded([(6, 4)], 4) == 32
    assert padded([(1, 5)], 4) == 20
    assert padded([()], 4) == 4


def test_fsdp_gathers_twice_and_reduces_once() -> None:
    """On 4 ranks a unit has 8 * 4 + 8 = 40 numbers, what learns beside them 4, the rest 20."""
    payload = fsdp(WEIGHTS, 4, gathered=2)
    assert payload.calls == {"all_gather": 6, "reduce_scatter": 3, "all_reduce": 1}
    assert payload.bytes["all_gather"] == 2 * (2 * 80 + 4 * 24)
    assert payload.bytes["reduce_scatter"] == 4 * 84
    assert payload.sent(4) == pytest.approx(0.75 * (512 + 336 + 2 * 12))


def test_gloo_reduces_the_whole_where_a_part_is_asked_for() -> None:
    payload = through_gloo(Payload({"reduce_scatter": 3, "all_reduce": 1}, {"reduce_scatter": 80}))
    assert payload.calls == {"all_reduce": 4}
    assert payload.sent(2) == 80


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("c10d::allreduce_", "all_reduce"),
        ("c10d::_allgather_base_", "all_gather"),
        ("c10d::_reduce_scatter_base_", "reduce_scatter"),
        ("_c10d_functional::all_reduce", "all_reduce"),
        ("_c10d_functional::reduce_scatter_tensor", "reduce_scatter"),
        ("c10d::barrier", None),
        ("aten::allreduce", None),
    ],
)
def test_collectives_are_known_by_name(operator: str, kind: str | None) -> None:
    assert kind_of(operator) == kind


@pytest.fixture
def many_ranks() -> Iterator[int]:
    """One rank of 48, of which torch plays the others: nothing is sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=48)
    yield 48
    dist.destroy_process_group()


def test_theory_is_what_torch_asks_for_on_many_ranks(many_ranks: int) -> None:
    """Positions are one row and widths no multiple of the ranks: what is padded counts."""
    student = EncoderConfig(width=40, depth=2, heads=2, image_size=32, position_grid=2)
    model = Sami(SamiConfig(student=student, decoder_depth=1, decoder_width=32, decoder_heads=2), 7)
    mesh = init_device_mesh("cpu", (many_ranks,))
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    apply_fsdp(model, mesh, policy)
    with Collectives() as collectives:
        image = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        model(image, torch.arange(2))[0].sum().backward()
    seen, expected = collectives.seen(), fsdp(weights_of(model), many_ranks)
    for kind in ("all_gather", "reduce_scatter"):
        assert seen.calls[kind] == expected.calls[kind]
        assert seen.bytes[kind] == expected.bytes[kind]


def test_kernel_counts_what_a_connection_has_sent() -> None:
    with socket.socket() as waiting:
        waiting.bind(("127.0.0.1", 0))
        waiting.listen()
        with socket.create_connection(waiting.getsockname()) as one, waiting.accept()[0] as other:
            before = sent_bytes()
            one.sendall(b"x" * 30_000)
            received = 0
            while received < 30_000:
                received += len(other.recv(30_000))
            assert sent_bytes() - before == 30_000


def test_link_is_the_line_through_two_sums() -> None:
    """0.1 ms for next to nothing, 2.1 ms for 4 MB: 2 GB a second."""
    link = fitted(1e-4, 2.1e-3, 4e6)
    assert (link.fixed, link.rate) == (1e-4, pytest.approx(2e9))
    assert link.seconds(3, 1e9) == pytest.approx(0.5003)


def record(seconds: list[float], counted: Payload, sent: float = 0.0) -> Record:
    return Record(seconds, 2**30, sent, counted, WEIGHTS)


def test_step_is_the_slowest_ranks_quickest_and_predicted_from_its_parts() -> None:
    counted = Payload({"all_reduce": 4}, {"all_reduce": 264})
    ranks = [record([1.0, 5.0, 2.0], counted, 3e8), record([9.0, 3.0], counted, 3e8)]
    step, memory = scaling.time_rows("s", "it", ranks, record([4.0], counted))
    assert step.ratio() == pytest.approx(3 / 4)
    assert memory.value == 1024
    row = scaling.predicted_row("s", 2.0, ranks, Link(fixed=0.01, rate=3e8))
    assert row.reference == pytest.approx(2 + 4 * 0.01 + 1)


def test_bytes_above_theory_miss_the_goal() -> None:
    right = Payload({"all_reduce": 2}, {"all_reduce": 4 * 63 + 12})
    twice = Payload({"all_reduce": 2}, {"all_reduce": 2 * (4 * 63 + 12)})
    asked, sent = scaling.traffic_rows("s", "it", "ddp", [record([1.0], right, 264.0)] * 2)
    assert (asked.ratio(), asked.met(), sent.ratio(), sent.met()) == (1, True, 1, True)
    asked, _ = scaling.traffic_rows("s", "it", "ddp", [record([1.0], twice)] * 2)
    assert not asked.met()


@pytest.mark.slow
@pytest.mark.parametrize("stage", scaling.STAGES)
@pytest.mark.parametrize("way", ["ddp", "fsdp", "fsdp_bf16"])
def test_two_ranks_send_what_theory_says(stage: str, way: str, tmp_path: Path) -> None:
    shards = write_images(tmp_path / "shards")
    runner = scaling.Runner(tmp_path, write_configs(tmp_path / "configs", shards, LEAST))
    steps = "trainer.max_steps=6"
    records = runner.run(stage, way, 4, 2, *scaling.WAYS[way], steps)
    assert [len(one.seconds) for one in records] == [2, 2]
    for row in scaling.traffic_rows("s", "it", way, records):
        assert row.ratio() == pytest.approx(1, rel=0.05), row.id  # a few flags beside small weights


def test_options_are_the_common_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Options] = []
    monkeypatch.setattr(scaling, "measured_link", lambda _: Link(1e-4, 1e9))
    monkeypatch.setattr(scaling, "write_images", lambda _: "none")
    monkeypatch.setattr(scaling, "_quick_rows", lambda *_: [])
    monkeypatch.setattr(scaling, "report", lambda name, rows, options: seen.append(options))
    assert scaling.main(["--json", "--quick"]) == 0
    assert seen == [Options(json=True, quick=True)]
