"""Time both stages, in bf16 and compiled, and FSDP2's checkpoints on one GPU.

The steps run through the commands, as `benchmarks.scaling` does; beside them stands what
`benchmarks.scaling.projection` computes for them from counts.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from benchmarks.harness import Row, parse_options, report
from benchmarks.sami.timed_step import CHANNELS, STUDENTS
from benchmarks.scaling.cluster import Node, memory_seconds
from benchmarks.scaling.inputs import RECIPES, write_configs, write_images
from benchmarks.scaling.projection import works
from benchmarks.scaling.timed_run import Record
from benchmarks.scaling.two_ranks import Runner, median_seconds
from efficientsam_pl.checkpoints.layout import SHARDS
from efficientsam_pl.checkpoints.state import split_state
from efficientsam_pl.checkpoints.writer import CheckpointWriter
from efficientsam_pl.models.config import NAMED
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.optim.adamw import build_optimizer
from efficientsam_pl.optim.config import sami_optim
from efficientsam_pl.training.flops import wait_for

NAME = "scaling_gpu"
PROGRAM = "scaling.gpu"
_ON_GPU = ("trainer.accelerator=gpu", "trainer.precision=bf16", "trainer.compile=regions")
_BATCHES = {"pretrain": 256, "finetune": 8}  # images per step, which is one micro-batch
_MASKS = 32  # per image, as in the recipe
_PROJECTED = {"pretrain": "Pretraining S, stored features", "finetune": "Finetuning Ti"}
_PEAK = 989e12  # FLOPs per second, dense bf16 (NVIDIA's H200 data sheet)


@dataclass(frozen=True)
class Times:
    """Times of one checkpoint, in seconds."""

    bytes: int
    saving: float  # until it is on disk
    stall: float  # of training, if written in the background
    loading: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; fail on a machine without a GPU."""
    options = parse_options(PROGRAM, (__doc__ or "").splitlines()[0], argv)
    if not torch.cuda.is_available():
        print("benchmarks.scaling.gpu needs a CUDA device, and there is none", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        rows = [] if options.quick else step_rows(home)
        models: dict[str, Callable[[], Any]] = {
            "sami_s": lambda: Sami(STUDENTS["S"], CHANNELS),
            "sam_vit_h": lambda: Segmenter(NAMED["sam_vit_h"]),
        }
        for name, build in models.items():
            rows += checkpoint_rows(name, checkpoint_times(build, home / name, "cuda"))
    report(NAME, rows, options)
    return 0


def step_rows(home: Path) -> list[Row]:
    """Measure both stages, with FSDP2's strategy, which shards nothing here, and without."""
    shards = write_images(home / "shards")
    runner = Runner(home, write_configs(home / "configs", shards, RECIPES))
    projected = {work.name: work for work in works()}
    rows = []
    for stage, batch in _BATCHES.items():
        overrides = [f"masks.masks_per_image={_MASKS}", "prompts.rounds=each"]
        given = [*_ON_GPU, "data.workers=8", *(overrides if stage == "finetune" else [])]
        single, sharded = (
            runner.run(stage, strategy, batch, 1, *given, f"trainer.strategy={strategy}")[0]
            for strategy in ("auto", "fsdp")
        )
        work = projected[_PROJECTED[stage]]
        seconds = max(
            batch * work.flop / Node().flops,
            memory_seconds(work, batch, Node()),
            work.host_s + work.launches * Node().launch_s,
        )
        rows += gpu_rows(f"{NAME}.{stage}", sharded, single, batch * work.flop, seconds)
    return rows


def gpu_rows(
    row_id: str, sharded: Record, single: Record, flop: float, projected: float
) -> list[Row]:
    """Rows of step time and memory under FSDP2 and without it, and of the share of the peak.

    Args:
        row_id: Prefix of the rows' ids.
        sharded: With FSDP2's strategy on one GPU.
        single: Without a strategy.
        flop: FLOPs of a step.
        projected: Seconds of a step without FSDP2, from counts.
    """
    here = "through the command, bf16, compiled regions, one GPU"
    seconds = median_seconds([single])
    return [
        Row(
            id=f"{row_id}.step",
            work=f"trainer.strategy=fsdp, which shards nothing on one GPU, {here}; "
            "reference: without it",
            value=median_seconds([sharded]),
            unit="s",
            reference=seconds,
        ),
        Row(
            id=f"{row_id}.projected",
            work=f"without FSDP2, {here}; reference: computed from counts",
            value=seconds,
            unit="s",
            reference=projected,
        ),
        Row(
            id=f"{row_id}.memory",
            work=f"allocated at the peak, {here}; reference: without FSDP2",
            value=sharded.memory / 2**30,
            unit="GiB",
            reference=single.memory / 2**30,
        ),
        Row(
            id=f"{row_id}.mfu",
            work=f"share of {_PEAK / 1e12:.0f} TFLOP/s, without FSDP2, {here}",
            value=flop / seconds / _PEAK,
            unit="",
            better="higher",
        ),
    ]


def checkpoint_times(build: Callable[[], Any], folder: Path, device: str) -> Times:
    """Time writing weights and AdamW's moments as FSDP2 shards on one device, and reading them.

    Args:
        build: Builds a model that lists its blocks.
        folder: A new folder for the checkpoints.
        device: `cuda` or `cpu`.
    """
    folder.mkdir(parents=True)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        model = build().to(device)
        mesh = init_device_mesh(device, (1,))
        for block in model.blocks():
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup), "this rank is in it"
        return _times(model, folder, group)
    finally:
        dist.destroy_process_group()


def _times(model: nn.Module, folder: Path, group: dist.ProcessGroup) -> Times:
    state = _state(model)
    seconds = {}
    for writing in ("background", "blocking"):
        writer = CheckpointWriter(
            "background" if writing == "background" else "blocking",
            on_complete=lambda _: None,
            on_files_written=lambda *_: None,
        )
        wait_for(next(model.parameters()).device)
        start = time.perf_counter()
        writer.save_sharded(state, folder / writing, group)
        seconds[writing] = time.perf_counter() - start
        written = writer.finish()
        writer.close()
        assert written, "the disk has room for it"
    tensors, _ = split_state(state)
    start = time.perf_counter()
    reader = FileSystemReader(folder / "blocking" / SHARDS)
    load(tensors, storage_reader=reader, process_group=group)
    wait_for(next(model.parameters()).device)
    loading = time.perf_counter() - start
    size = sum(path.stat().st_size for path in (folder / "blocking").rglob("*") if path.is_file())
    return Times(size, seconds["blocking"], seconds["background"], loading)


def _state(model: nn.Module) -> dict[str, Any]:
    """Build a checkpoint as Lightning does, after a step with a tiny update."""
    optimizer = build_optimizer(model, sami_optim())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {
        "state_dict": get_model_state_dict(model),
        "optimizer_states": [get_optimizer_state_dict(model, optimizer)],
        "global_step": 1,
    }


def checkpoint_rows(name: str, times: Times) -> list[Row]:
    """Rows of saving, background stall and loading in seconds, and of bytes."""
    work = "weights and AdamW's moments, float32, FSDP2's shards of one rank"
    parts = {
        "saved": ("until it is on disk", times.saving),
        "stall": ("until training goes on, written in the background", times.stall),
        "loaded": ("from a disk that has just written it, into the model's tensors", times.loading),
    }
    rows = [
        Row(id=f"{NAME}.{name}.{part}", work=f"{work}, {said}", value=value, unit="s")
        for part, (said, value) in parts.items()
    ]
    rows.append(Row(id=f"{NAME}.{name}.size", work=work, value=times.bytes / 1e9, unit="GB"))
    return rows


if __name__ == "__main__":
    sys.exit(main())
