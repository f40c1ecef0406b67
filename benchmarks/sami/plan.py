"""Estimate the cost of the paper's pretraining: GPU-hours, bytes and read rates.

Counted operations divided by the GPU's rate; rates are shares of that of a large matmul, to be
replaced by measured ones (`python -m benchmarks.sami` on the GPU).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks.sami.flop import step_flop, teacher_flop
from benchmarks.sami.timed_step import CHANNELS, STUDENTS
from efficientsam_pl.models.config import NAMED

_TOKENS = 14 * 14  # per view
_MAP_CELLS = 64 * 48  # per whole image of 4:3, without padding
_GPUS = (8, 64)
_BYTES = {"float16": 2, "int8": 1}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Operations per second of a GPU, for each part."""

    student: float
    teacher: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """Length of pretraining, and what is stored per image."""

    images: int = 1_281_167  # ImageNet-1K's training set
    epochs: int = 400  # paper, 4.1
    jpeg_bytes: int = 110_000  # mean of an image, packed unchanged
    crops_a_core: int = 1100  # decoded and cropped per second (data.imagenet_crop)
    views: int = 4

    def samples(self) -> int:
        """Count the training samples."""
        return self.images * self.epochs


@dataclass(frozen=True, kw_only=True)
class Way:
    """A source of targets: costs per sample, and of preparation per image."""

    name: str
    online_flop: int  # of the teacher, per sample
    embedding_flop: int  # of the teacher, once per image
    stored_bytes: int  # of features, per image
    read_bytes: int  # of features, per sample


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a run with one source of targets."""

    embedding_hours: float  # GPU-hours, once
    training_hours: float  # GPU-hours
    storage: float  # bytes, including images
    image_rate: float  # training images per second and GPU
    read_rate: float  # bytes per second and GPU


def ways(views: int) -> list[Way]:
    """List all sources: online at both sizes, stored views and whole images in both precisions."""
    encoder = NAMED["sam_vit_h"].encoder
    at_224, at_1024 = teacher_flop(encoder, 224), teacher_flop(encoder, 1024)
    result = [
        Way(
            name=f"online, {size}",
            online_flop=flop,
            embedding_flop=0,
            stored_bytes=0,
            read_bytes=0,
        )
        for size, flop in ((224, at_224), (1024, at_1024))
    ]
    for (size, flop), numbers in product(((224, at_224), (1024, at_1024)), _BYTES):
        view = map_bytes(_TOKENS, numbers)
        result.append(
            Way(
                name=f"stored, {views} views at {size}, {numbers}",
                online_flop=0,
                embedding_flop=views * flop,
                stored_bytes=views * view,
                read_bytes=view,
            )
        )
    for numbers in _BYTES:
        whole = map_bytes(_MAP_CELLS, numbers)
        result.append(
            Way(
                name=f"stored, whole images at 1024, {numbers}",
                online_flop=0,
                embedding_flop=at_1024,
                stored_bytes=whole,
                read_bytes=whole,
            )
        )
    return result


def map_bytes(cells: int, numbers: str) -> int:
    """Bytes of a feature map; int8 has a float32 scale per channel."""
    return CHANNELS * (cells * _BYTES[numbers] + (4 if numbers == "int8" else 0))


def cost(way: Way, student_step_flop: int, run: Run, machine: Machine) -> Cost:
    """Compute GPU-hours, storage and read rate of a whole run."""
    seconds = student_step_flop / machine.student + way.online_flop / machine.teacher
    return Cost(
        embedding_hours=run.images * way.embedding_flop / machine.teacher / 3600,
        training_hours=run.samples() * seconds / 3600,
        storage=run.images * (run.jpeg_bytes + way.stored_bytes),
        image_rate=1 / seconds,
        read_rate=(run.jpeg_bytes + way.read_bytes) / seconds,
    )


def table(student_step_flop: int, run: Run, machine: Machine) -> str:
    """Format all sources as Markdown."""
    several = [f"hours on {gpus} | photos/s | cores that decode | GB/s read" for gpus in _GPUS]
    head = ["target", "GPU-hours of embedding", "of training", "stored, TB", *several]
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("|" + "---|" * (4 + 4 * len(_GPUS)))
    for way in ways(run.views):
        result = cost(way, student_step_flop, run, machine)
        hours = result.embedding_hours + result.training_hours
        cells = [
            way.name,
            f"{result.embedding_hours:.1f}",
            f"{result.training_hours:.0f}",
            f"{result.storage / 1e12:.2f}",
        ]
        for gpus in _GPUS:
            cells += [
                f"{hours / gpus:.1f}",
                f"{gpus * result.image_rate:,.0f}",
                f"{gpus * result.image_rate / run.crops_a_core:.0f}",
                f"{gpus * result.read_rate / 1e9:.1f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan."""
    options = _parser().parse_args(argv)
    run = Run(
        images=options.photos,
        epochs=options.epochs,
        jpeg_bytes=options.jpeg_bytes,
        crops_a_core=options.crops_a_core,
        views=options.views,
    )
    print("# Plan of the full pretraining run\n")
    print(
        f"{run.epochs} epochs of {run.images:,} images are {run.samples() / 1e6:.1f} M samples. "
        f"Given, not measured here: a matmul's rate is {options.teraflops:g} TFLOP/s, of which the "
        f"teacher reaches {options.share_teacher:.0%}, student S {options.share_s:.0%}, "
        f"B {options.share_b:.0%}; a core decodes and crops {run.crops_a_core:,} images per second."
    )
    for name, share in (("S", options.share_s), ("B", options.share_b)):
        flop = step_flop(STUDENTS[name], CHANNELS)
        machine = Machine(
            student=options.teraflops * 1e12 * share,
            teacher=options.teraflops * 1e12 * options.share_teacher,
        )
        print(f"\n## ViT-{name}: {flop / 1e9:.1f} GFLOP a sample and step\n")
        print(table(flop, run, machine))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sami.plan")
    parser.description = (__doc__ or "").splitlines()[0]
    rate = "TFLOP/s of a large bf16 matmul (%(default)s: an H200's)"
    parser.add_argument("--teraflops", type=float, default=790.0, help=rate)
    parser.add_argument("--share-s", type=float, default=0.34, help="of it that ViT-S reaches")
    parser.add_argument(
        "--share-b", type=float, default=0.43, help="of it that ViT-B reaches (not measured)"
    )
    parser.add_argument(
        "--share-teacher", type=float, default=0.31, help="of it that ViT-H reaches"
    )
    parser.add_argument("--photos", type=int, default=Run.images)
    parser.add_argument("--epochs", type=int, default=Run.epochs)
    parser.add_argument("--jpeg-bytes", type=int, default=Run.jpeg_bytes, help="a packed image")
    crops = "decoded and cropped a second by one core"
    parser.add_argument("--crops-a-core", type=int, default=Run.crops_a_core, help=crops)
    parser.add_argument("--views", type=int, default=Run.views, help="stored of each image")
    return parser


if __name__ == "__main__":
    sys.exit(main())
