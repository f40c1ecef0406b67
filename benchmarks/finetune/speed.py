"""Time prompted decoding, a finetuning step and mask AP against the released implementation.

The released code materialises every softmax of the encoder, and repeats and projects an image's
embedding for each of its prompts.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.finetune import mask_ap
from benchmarks.finetune.released_decoder import ReleasedSegmenter
from benchmarks.finetune.timed_step import PromptedStep, boxes_batch
from benchmarks.harness import (
    Row,
    Taken,
    alternate,
    parse_options,
    peak_memory_rise,
    report,
    timed_rows,
)
from efficientsam_pl.models.config import NAMED, SegmenterConfig
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.structures import Prediction, Prompts

NAME = "finetune"
CONFIG = NAMED["efficient_sam_ti"]
PROMPTS, MASKS = 64, 8
_MATMUL_SIDE = 2048  # large enough that torch.mm runs at its full rate

Way = Literal["ours", "released"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; the exit code does not depend on the goals."""
    start = time.perf_counter()
    options = parse_options(NAME, (__doc__ or "").splitlines()[0], argv)
    rows = mask_ap.rows(options.quick)
    left = 44 - (time.perf_counter() - start) if options.quick else 600
    rows += decode_rows(CONFIG, PROMPTS, rounds=9, seconds=left)
    if not options.quick:
        rows += step_rows(CONFIG, MASKS, rounds=5, seconds=900)
        if torch.cuda.is_available():
            from benchmarks.finetune import gpu

            rows += gpu.measure()
    report(NAME, rows, options)
    return 0


def decode_rows(config: SegmenterConfig, prompts: int, rounds: int, seconds: float) -> list[Row]:
    """Compare decoding boxes of one image: time, memory, difference, share of the lower bound.

    Args:
        config: EfficientSAM's layout, of any size.
        prompts: Number of boxes decoded in one call.
        rounds: Maximum number of rounds.
        seconds: No further round starts that would end later than this.
    """
    start = time.perf_counter()
    memory, memory_released = (
        peak_memory_rise(partial(prepare_decode, config, prompts, way)) / 2**20
        for way in ("ours", "released")
    )
    ways: tuple[Way, Way] = ("ours", "released")
    calls = {way: prepare_decode(config, prompts, way) for way in ways}
    predictions: dict[str, Tensor] = {}

    def predict(way: Way) -> None:
        predictions[way] = calls[way]().low_res_logits

    square = torch.randn(_MATMUL_SIDE, _MATMUL_SIDE)
    taken = alternate(
        {way: partial(predict, way) for way in ways} | {"matmul": lambda: square @ square},
        rounds,
        seconds - (time.perf_counter() - start),
    )
    difference = float((predictions["ours"] - predictions["released"]).abs().max())
    size = config.encoder.image_size
    here = f"{prompts} boxes of one image of {size} pixels, float32"
    return [
        *timed_rows(
            ("finetune.decode64_time", "finetune.decode64_processor_time"),
            f"{here}; median of {taken['ours'].rounds} rounds",
            taken["ours"],
            taken["released"],
            goal=0.55,
        ),
        Row(
            id="finetune.decode64_memory",
            work=f"rise of resident memory, {here}",
            value=memory,
            unit="MiB",
            reference=memory_released,
            goal=0.40,
        ),
        Row(
            id="finetune.decode64_difference",
            work="largest absolute difference of the logits",
            value=difference,
            unit="",
            goal=1e-4,
        ),
        *floor_rows(config, prompts, taken),
    ]


def floor_rows(config: SegmenterConfig, prompts: int, taken: Mapping[str, Taken]) -> list[Row]:
    """Compare FLOPs with the released code, and our rate with that of a single matmul."""
    gflop, gflop_released = (
        decode_flop(config, prompts, way) / 1e9 for way in ("ours", "released")
    )
    return [
        Row(
            id="finetune.decode64_operations",
            work="products, counted by torch",
            value=gflop,
            unit="GFLOP",
            reference=gflop_released,
        ),
        Row(
            id="finetune.decode64_floor",
            work=f"share of the rate of a bare {_MATMUL_SIDE}^3 float32 matmul",
            value=gflop / taken["ours"].wall,
            unit="GFLOP/s",
            reference=2 * _MATMUL_SIDE**3 / 1e9 / taken["matmul"].wall,
            better="higher",
        ),
    ]


def prepare_decode(config: SegmenterConfig, prompts: int, way: Way) -> Callable[[], Prediction]:
    """Predict all boxes of an image from seeded features, after a warm-up with one box."""
    model = build(config, way).eval()
    grid = config.encoder.grid()
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(1, config.encoder.neck_channels, grid, grid, generator=draw)
    boxes = boxes_batch(config.encoder.image_size, 1, prompts).boxes_xyxy_px

    def decode(boxes: Tensor = boxes) -> Prediction:
        with torch.no_grad():
            return model.decode(features, Prompts.of_boxes(boxes))

    decode(boxes[:, :1])
    return decode


def decode_flop(config: SegmenterConfig, prompts: int, way: Way) -> int:
    """Count the FLOPs of matrix products by torch, without computing them."""
    with torch.device("meta"):
        model = build(config, way)
    grid, width = config.encoder.grid(), config.encoder.neck_channels
    hollow = FakeTensorMode(allow_non_fake_inputs=True)  # autocast supports the CPU, but not meta
    with hollow, torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.to_empty(device="cpu")
        boxes = Prompts.of_boxes(torch.zeros(1, prompts, 4))
        model.decode(torch.zeros(1, width, grid, grid), boxes)
    return int(counter.get_total_flops())


def step_rows(config: SegmenterConfig, masks: int, rounds: int, seconds: float) -> list[Row]:
    """Compare a training step on one image.

    Args:
        config: EfficientSAM's layout, of any size.
        masks: Number of masks, each with its box.
        rounds: Maximum number of rounds.
        seconds: No further round starts that would end later than this.
    """
    explicit = replace(config, encoder=replace(config.encoder, attention="explicit"))
    steps = {
        "ours": PromptedStep(build(config, "ours"), 1, masks),
        "released": PromptedStep(build(explicit, "released"), 1, masks),
    }
    for step in steps.values():
        step()
    taken = alternate(steps, rounds, seconds)
    work = (
        f"forward, loss, backward and AdamW, {config.encoder.image_size} pixels, {masks} boxes, "
        f"float32, batch 1; median of {taken['ours'].rounds} rounds; reference: explicit "
        "attention and the embedding tiled"
    )
    ids = ("finetune.step_time", "finetune.step_processor_time")
    return timed_rows(ids, work, taken["ours"], taken["released"], goal=0.65)


def build(config: SegmenterConfig, way: Way) -> Segmenter:
    """Build the model of either variant with the same seeded weights."""
    torch.manual_seed(0)
    return Segmenter(config) if way == "ours" else ReleasedSegmenter(config)
