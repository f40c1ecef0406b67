"""Parts of a profile, in the order of their worth; each returns figures to be saved as JSON."""

import gc
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.encoder_forward.speed import forward_flop, released_forward
from benchmarks.gpu_profile.setting import Result, Setting, median
from benchmarks.sami.flop import step_flop, teacher_flop
from benchmarks.sami.timed_step import CHANNELS, STUDENTS, StudentStep
from benchmarks.scaling.timed_run import UNTIMED, read_records
from efficientsam_pl.models.config import NAMED, EncoderConfig, SamiConfig, TeacherConfig
from efficientsam_pl.models.teacher import FrozenTeacher
from efficientsam_pl.models.vit import build_encoder
from efficientsam_pl.training.compilation import apply_compile
from efficientsam_pl.training.flops import matmul_rate, wait_for

_TIMED = 5  # steps through a command
_ROUNDS, _CALLS = 3, 3
_TINY = EncoderConfig(width=24, depth=1, heads=3, image_size=32, position_grid=2, neck_channels=16)


@dataclass(frozen=True)
class Part:
    """A measurement of its own."""

    name: str
    measure: Callable[[Setting], Result]


def all_parts() -> list[Part]:
    """List the parts; a budget that ends too early leaves out the last ones."""
    command, dissected = _command, _dissected
    return [
        Part("product", _product),
        command("finetune", "ti", 8, "regions", "triton"),
        command("pretrain", "s", 256, "regions", "triton"),
        Part("sami_alone_256", partial(_sami_alone, batch=256)),
        dissected("finetune", "ti", 8),
        command("finetune", "s", 8, "regions", "triton"),
        command("finetune", "ti", 16, "step", "triton"),
        command("pretrain", "s", 256, "step", "triton"),
        Part("sami_alone_1024", partial(_sami_alone, batch=1024)),
        Part("encoder_ti", partial(_encoder, name="efficient_sam_ti")),
        Part("encoder_s", partial(_encoder, name="efficient_sam_s")),
        Part("online_512", partial(_online, batch=512)),
        command("finetune", "ti", 8, "regions", "plain"),
        dissected("pretrain", "s", 256),
        command("finetune", "ti", 16, "regions", "triton"),
        command("finetune", "s", 16, "step", "triton"),
        Part("sami_alone_4096", partial(_sami_alone, batch=4096)),
        *_remaining_commands(),
    ]


def _remaining_commands() -> Iterator[Part]:
    """Batches, graphs and kernels that the parts above leave out."""
    first = {
        *(("finetune", "ti", 8, "regions", "triton"), ("pretrain", "s", 256, "regions", "triton")),
        *(("finetune", "s", 8, "regions", "triton"), ("finetune", "ti", 16, "step", "triton")),
        *(("pretrain", "s", 256, "step", "triton"), ("finetune", "ti", 8, "regions", "plain")),
        *(("finetune", "ti", 16, "regions", "triton"), ("finetune", "s", 16, "step", "triton")),
    }
    sizes = [("pretrain", "s", 1024), *itertools.product(["finetune"], ["ti", "s"], [4, 8, 16])]
    for (stage, student, batch), form, kernels in itertools.product(
        [("pretrain", "s", 256), *sizes], ("step", "regions"), ("triton", "plain")
    ):
        if (stage, student, batch, form, kernels) not in first:
            yield _command(stage, student, batch, form, kernels)


def _command(stage: str, student: str, batch: int, form: str, kernels: str) -> Part:
    name = command_name(stage, student, batch, form, kernels)

    def measure(setting: Setting) -> Result:
        images = setting.batch(batch)
        given = [f"trainer.global_batch={images}", f"trainer.micro_batch={images}"]
        given += [f"trainer.compile={'none' if setting.is_tiny else form}"]
        given += [f"trainer.kernels={kernels}", f"trainer.max_steps={UNTIMED + _TIMED + 1}"]
        program = "benchmarks.scaling.timed_run"
        [record] = read_records(setting.run_stage(program, stage, student, name, given), 1)
        seconds = median(record.seconds)
        return {
            "step_ms": 1e3 * seconds,
            "images_per_s": images / seconds,
            "all_ms": [round(1e3 * s, 2) for s in record.seconds],
            "peak_gib": record.memory / 2**30,
        }

    return Part(name, measure)


def command_name(stage: str, student: str, batch: int, form: str, kernels: str) -> str:
    """Name of the part that times a stage through its command."""
    return f"command_{stage}_{student}_{batch}_{form}_{kernels}"


def _dissected(stage: str, student: str, batch: int) -> Part:
    name = f"dissected_{stage}_{student}_{batch}"

    def measure(setting: Setting) -> Result:
        images = setting.batch(batch)
        given = [f"trainer.global_batch={images}", f"trainer.micro_batch={images}"]
        given += [f"trainer.compile={'none' if setting.is_tiny else 'regions'}"]
        program = "benchmarks.gpu_profile.spans"
        folder = setting.run_stage(program, stage, student, name, given)
        result: Result = json.loads((folder / "spans.json").read_text())
        return result

    return Part(name, measure)


def _product(setting: Setting) -> Result:
    dtype = torch.bfloat16 if setting.device == "cuda" else torch.float32
    return {"tflops": matmul_rate(setting.torch_device, dtype) / 1e12}


def _sami_alone(setting: Setting, batch: int) -> Result:
    config, images = _sami_config(setting), setting.batch(batch)
    step = StudentStep(config, images, setting.device)
    seconds = seconds_a_call(step.with_stored, setting)
    return _rates(images, seconds, step_flop(config, CHANNELS))


def _online(setting: Setting, batch: int) -> Result:
    config, images = _sami_config(setting), setting.batch(batch)
    teacher_config = TeacherConfig()
    if setting.is_tiny:
        encoder = replace(_TINY, neck_channels=CHANNELS)
        teacher_config = TeacherConfig(encoder=encoder, image_size=32, precision="fp32")
    teacher = FrozenTeacher(teacher_config, config.student.grid()).to(setting.torch_device)
    if setting.device == "cuda":
        apply_compile(teacher)
    step = StudentStep(config, images, setting.device)
    seconds = seconds_a_call(partial(step.with_online, teacher), setting)
    flop = teacher_flop(teacher_config.encoder, teacher_config.image_size)
    return _rates(images, seconds, step_flop(config, CHANNELS) + flop)


def _encoder(setting: Setting, name: str) -> Result:
    """Compare inference of an encoder, compiled, with the released code's explicit attention."""
    config, images = _TINY if setting.is_tiny else NAMED[name].encoder, setting.batch(8)
    device = setting.torch_device
    encoder: Any = build_encoder(config).eval().to(device)
    pixels = torch.randn(images, 3, config.image_size, config.image_size, device=device)
    compiled = torch.compile(encoder) if setting.device == "cuda" else encoder
    ways = {"ours": compiled, "released": partial(released_forward, encoder)}

    def forward(call: Callable[[Tensor], Tensor]) -> None:
        with torch.inference_mode(), _precision(setting):
            call(pixels)

    taken = {way: seconds_a_call(partial(forward, call), setting) for way, call in ways.items()}
    return {
        "images_per_s": images / taken["ours"],
        "released_images_per_s": images / taken["released"],
        "ratio": taken["released"] / taken["ours"],
        "tflops": images * forward_flop(config) / taken["ours"] / 1e12,
    }


def seconds_a_call(call: Callable[[], object], setting: Setting) -> float:
    """Median time of a call, after a warm-up, in rounds of calls that are not waited for."""
    for _ in range(2):
        call()
    rounds = []
    for _ in range(1 if setting.is_tiny else _ROUNDS):
        wait_for(setting.torch_device)
        start = time.perf_counter()
        for _ in range(_CALLS):
            call()
        wait_for(setting.torch_device)
        rounds.append((time.perf_counter() - start) / _CALLS)
    return median(rounds)


def free_memory() -> None:
    """Free what the previous part has left on the device."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _rates(images: int, seconds: float, flop: int) -> Result:
    return {
        "batch": images,
        "step_ms": 1e3 * seconds,
        "images_per_s": images / seconds,
        "tflops": images * flop / seconds / 1e12,
    }


def _sami_config(setting: Setting) -> SamiConfig:
    if not setting.is_tiny:
        return STUDENTS["S"]
    return SamiConfig(student=_TINY, decoder_depth=1, decoder_width=32, decoder_heads=2)


def _precision(setting: Setting) -> AbstractContextManager[object]:
    return torch.autocast("cuda", torch.bfloat16) if setting.device == "cuda" else nullcontext()
