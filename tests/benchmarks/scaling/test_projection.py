"""The model of many nodes by numbers that fit on a slip of paper, and what the document holds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.sami.flop import step_flop, teacher_flop
from benchmarks.sami.timed_step import CHANNELS, STUDENTS
from benchmarks.scaling import gpu, projection
from benchmarks.scaling.cluster import (
    Node,
    Work,
    checkpoint_bytes,
    gathering_seconds,
    hours,
    image_rate,
    network_seconds,
    shards_open,
    step,
)
from benchmarks.scaling.recipes import finetuning, operations, pretraining, teaching
from benchmarks.scaling.timed_run import Record
from benchmarks.scaling.traffic import Payload, Weights
from benchmarks.step_counts.table import read_table
from efficientsam_pl.models.config import NAMED, SamiConfig, TeacherConfig
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.segmenter import Segmenter

# Two GPUs a node of 0.5 TFLOP/s and 100 GB/s, half of which is reached, 10 GB/s inside, 1 GB/s
# each outside; nothing else takes time
NODE = Node(
    gpus=2,
    flops=0.5e12,
    memory=100e9,
    memory_reached=0.5,
    nvlink=10e9,
    network=1e9,
    reached=1.0,
    collective_s=0.0,
    hop_s=0.0,
    launch_s=0.0,
    decoding_cores=1,
    file_rate=1e6,
)
# 0.1 s an image by FLOPs; 250 M parameters are 1 GB of gradients
WORK = Work(
    name="w",
    flop=5e10,
    moved=0.0,
    moved_once=0.0,
    teacher_s=0.0,
    launches=1000,
    host_s=0.0,
    weights=Weights(units=(((250_000, 1000),),), learning=()),
    global_batch=8,
    micro_batch=2,
    steps=3600,
    image_bytes=1_000_000,
    images_a_core=1e9,
    shard_images=1,
)


def test_a_node_computes_its_share_and_sums_inside() -> None:
    """4 photos a GPU are 0.4 s; 2 (2 - 1) / 2 of 1 GB at 10 GB/s run beside the last backward."""
    found = step(WORK, 1, NODE)
    assert found is not None
    assert (found.images, found.limit) == (4, "FLOPs")
    assert found.seconds == pytest.approx(0.4)
    assert found.ddp == pytest.approx(0.1)
    assert (found.gpu_sends, found.node_sends) == (pytest.approx(1e9), 0)
    assert hours(WORK, found) == pytest.approx(0.4)
    assert image_rate(WORK, found) == pytest.approx(20)


def test_between_nodes_the_network_is_waited_for() -> None:
    """Two nodes send 1 GB each through two links: 0.5 s; the last 2 of 2 photos hide 2/3 of 0.2."""
    found = step(WORK, 2, NODE)
    assert found is not None
    assert found.ddp == pytest.approx(0.5)
    assert found.node_sends == pytest.approx(1e9)
    assert found.seconds == pytest.approx(0.2 + 0.5 - 0.4 / 3)
    assert found.limit == "network"


def test_sharded_weights_are_gathered_for_each_micro_batch() -> None:
    """On one node 0.5 GB in bf16, twice in each of two micro-batches; 1 GB reduced; half each."""
    found = step(WORK, 1, NODE)
    assert found is not None
    assert found.fsdp == pytest.approx((4 * 0.5 + 1) / 2 / 10)


def test_a_batch_of_eight_feeds_no_sixteen_gpus() -> None:
    assert step(WORK, 4, NODE) is not None
    assert step(WORK, 8, NODE) is None


def test_memory_at_the_share_that_is_reached_sets_the_pace() -> None:
    """4 images of 10 GB and 2 GB once, at 50 GB/s; the FLOPs run beside them."""
    result = step(replace(WORK, moved=10e9, moved_once=2e9), 1, NODE)
    assert result is not None
    assert result.flops == pytest.approx(0.4)
    assert result.computing == result.memory == pytest.approx(42 / 50)
    assert (result.limit, result.seconds) == ("memory", pytest.approx(0.84))


def test_teacher_runs_before_the_student() -> None:
    result = step(replace(WORK, teacher_s=0.2), 1, NODE)
    assert result is not None
    assert (result.limit, result.computing) == ("teacher", pytest.approx(4 * (0.1 + 0.2)))


def test_host_is_paid_for_each_micro_batch_and_launches_unless_captured() -> None:
    """4 images in micro-batches of 2: twice 0.1 s of loop, and 1000 kernels of 0.2 ms."""
    result = step(replace(WORK, host_s=0.1), 1, replace(NODE, launch_s=2e-4))
    assert result is not None
    assert result.host == pytest.approx(2 * (0.1 + 0.2))
    assert result.host_captured == pytest.approx(2 * 0.1)
    assert (result.limit, result.seconds) == ("host", pytest.approx(0.6))


def test_cores_that_decode_too_slowly_set_the_pace() -> None:
    """4 photos a GPU at 2 a second and core, by two cores."""
    found = step(replace(WORK, images_a_core=2), 1, replace(NODE, decoding_cores=2))
    assert found is not None
    assert (found.limit, found.seconds, found.seconds_fsdp) == ("decoding", 1.0, 1.0)


def test_a_collective_has_its_fixed_time_and_more_for_each_doubling() -> None:
    node = replace(NODE, collective_s=1.0, hop_s=0.25)
    payload = Payload({"all_gather": 2}, {"all_gather": 0})
    assert network_seconds(payload, 1, node) == 2
    assert network_seconds(payload, 8, node) == 2 * 1.75
    # 8 GB to half of it on each of two nodes: 4 GB through two links of 1 GB/s
    assert gathering_seconds(8e9, 0, 2, NODE) == pytest.approx(2)


def test_shards_open_for_the_read_rate_or_for_the_pool() -> None:
    """20 MB a second at 1 MB a file; or a pool of eight batches at one photo a shard."""
    found = step(WORK, 1, NODE)
    assert found is not None
    assert shards_open(replace(WORK, shard_images=100), found, NODE) == 20
    assert shards_open(WORK, found, NODE) == 64


def test_checkpoint_is_three_numbers_a_parameter_or_four() -> None:
    weights = Weights(units=(((2, 3),),), learning=((4,),), frozen=((9,),))
    assert checkpoint_bytes(weights) == 120
    assert checkpoint_bytes(weights, with_ema=True) == 160


@pytest.mark.slow
def test_pretraining_is_counted_as_by_hand() -> None:
    """But for the photo's own gradient, which a backward pass of two forwards would have.

    A photo on its own also pays for what a batch shares: queries, keys and values of the 49 visible
    places in the first of 8 blocks of width 512, and the values' bias in each.
    """
    shared = 3 * 2 * (3 * 49 + 8) * 512**2
    expected = step_flop(STUDENTS["S"], CHANNELS) + shared - 2 * 49 * 768 * 384
    assert pretraining("s").flop == expected
    model = Sami(SamiConfig(student=STUDENTS["S"].student), CHANNELS)
    assert pretraining("s").weights.learned() == sum(p.numel() for p in model.parameters())
    found = teaching(224)
    assert found.flop == teacher_flop(TeacherConfig().encoder, 224)
    encoder = Segmenter(NAMED["sam_vit_h"]).image_encoder
    assert found.numbers == sum(p.numel() for p in encoder.parameters())


def test_operations_are_those_that_write() -> None:
    """A layer more is a product more; the transposed weight is a view and costs nothing."""
    one = operations(
        lambda: torch.nn.Linear(1, 1, bias=False),
        lambda layer, image: layer(image.new_zeros(1, 1).float()).detach(),
        16,
    )
    two = operations(
        lambda: torch.nn.Linear(1, 1, bias=False),
        lambda layer, image: layer(layer(image.new_zeros(1, 1).float())).detach(),
        16,
    )
    assert two - one == 1


@pytest.mark.slow
def test_document_holds_what_the_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert projection.main([]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n| --- |") == 14
    document = Path(__file__).parents[3] / "docs/scaling.md"
    assert printed.strip() in document.read_text()


@pytest.mark.slow
def test_finetuning_grows_with_its_rounds() -> None:
    """A photo of 1024 costs at least three of the encoder's forwards, 204.5 GFLOP each."""
    assert finetuning("ti").flop > 3 * 204.5e9


def test_without_a_gpu_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_checkpoints_are_written_and_read_on_one_rank(tmp_path: Path) -> None:
    config = SamiConfig(
        student=replace(STUDENTS["S"].student, width=24, heads=2, depth=1, image_size=32),
        decoder_depth=1,
        decoder_width=32,
        decoder_heads=2,
    )
    times = gpu.checkpoint_times(lambda: Sami(config, 8), tmp_path / "new", "cpu")
    numbers = sum(p.numel() for p in Sami(config, 8).parameters())
    tensors = 4 * len(list(Sami(config, 8).parameters()))  # and AdamW's moments and steps
    assert 12 * numbers < times.bytes < 12 * numbers + 2500 * tensors  # each with its own header
    assert min(times.saving, times.stall, times.loading) > 0


def test_rows_of_a_gpu_by_hand() -> None:
    """494.5 TFLOP in 2 s are a quarter of 989 TFLOP/s; FSDP2 takes 2.5 s, projected was 1.6."""
    nothing = Payload({}, {})

    def ran(seconds: float, gib: int) -> Record:
        return Record([seconds] * 3, gib * 2**30, 0.0, nothing, WORK.weights)

    rows = gpu.gpu_rows("s", ran(2.5, 3), ran(2.0, 4), 494.5e12, projected=1.6)
    step_row, projected, memory, share = rows
    assert step_row.ratio() == pytest.approx(1.25)
    assert projected.ratio() == pytest.approx(1.25)
    assert (memory.value, memory.reference) == (3, 4)
    assert share.value == pytest.approx(0.25)


@pytest.mark.slow
def test_projection_takes_its_counts_from_the_table() -> None:
    counts = read_table("finetune-each", "ti")
    [work] = [work for work in projection.works() if work.name == "Finetuning Ti"]
    assert work.launches == counts.launches
    assert work.moved == 1e9 * counts.image_gb
    assert work.moved_once == 1e9 * counts.step_gb
    assert work.host_s == counts.host_ms / 1e3


def test_tables_of_a_document_are_replaced_and_its_text_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "tables", lambda _: "### Overview\n\nnew")
    document = tmp_path / "scaling.md"
    document.write_text("# Scaling\n\n### Overview\n\nold\n\n### Other\n")
    assert projection.main(["--write", str(document)]) == 0
    assert document.read_text() == "# Scaling\n\n### Overview\n\nnew\n"
