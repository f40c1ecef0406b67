"""`efficientsam embed-teacher`: compute the teacher's features once and store them as shards."""

import sys
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64, UInt8
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from efficientsam_pl.cluster.devices import chosen_device
from efficientsam_pl.data.build import open_splits
from efficientsam_pl.data.features.codec import Rounding
from efficientsam_pl.data.features.store import ROUNDING, is_claimed, written_features
from efficientsam_pl.data.features.writer import Embed, Embedding, FeatureSource
from efficientsam_pl.data.packing.report import report_packing
from efficientsam_pl.data.packing.runner import ArrayShare, run_packing
from efficientsam_pl.data.packing.writer import PackSummary
from efficientsam_pl.models.teacher import FrozenTeacher
from efficientsam_pl.plural import counted
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.recipes.sami.feature_store import (
    StorePart,
    describe,
    maps_of,
    named,
    store_parts,
    views_of,
)
from efficientsam_pl.storage.retries import set_store_patience
from efficientsam_pl.training.compilation import apply_compile


def run(config: PretrainConfig, share: ArrayShare) -> None:
    """Write a share of the features of every set that the config names."""
    set_store_patience(config.store_patience_s())
    device = chosen_device(config.trainer.accelerator, "trainer.accelerator")
    parts = store_parts(config, open_splits(config.data))
    for part in parts:
        with named(config, part):  # before the teacher is built
            is_claimed(part.folder, describe(config, part.heldout))
            written_features(part.folder, part.images)
    teacher = FrozenTeacher(config.teacher, config.sami.student.grid()).to(device)
    if config.trainer.compile != "none":
        apply_compile(teacher)
    for part in parts:
        source = FeatureSource(
            part.images,
            _embedding(config, part.heldout, teacher),
            describe(config, part.heldout),
            config.data,
        )
        columns = (TextColumn(f"Embedding {part.key}"), BarColumn(), TaskProgressColumn())
        with Progress(
            *columns, TimeRemainingColumn(), transient=True, disable=not sys.stdout.isatty()
        ) as progress:
            task = progress.add_task("", total=source.weight(share))
            summary = run_packing(
                source,
                part.folder,
                share,
                workers=0,  # no writer processes: the teacher runs in this process
                advance=lambda squares: progress.advance(task, squares),  # noqa: B023
            )
        _print_summary(config, part, share, summary)


def _embedding(config: PretrainConfig, heldout: bool, teacher: FrozenTeacher) -> Embedding:
    numbers = config.features.numbers
    batch = min(config.trainer.micro_batch, teacher.chunk_size)  # images of 1024 pixels are large
    if config.features.kind == "views":
        views = views_of(config, heldout)
        return Embedding(
            views.teacher_input, _embed_views(teacher, batch), views.count, batch, numbers
        )
    maps = maps_of(config, heldout)
    device = next(teacher.parameters()).device

    def embed(
        squares: UInt8[Tensor, "m 3 s s"], content_hw: Int64[Tensor, "m 2"]
    ) -> Iterator[Float[Tensor, "1 rows cols c"]]:
        images, content = (_pad_batch(x, batch).to(device) for x in (squares, content_hw))
        features = teacher.feature_map(images, content)[: len(squares)].float()
        for feature_map, (height, width) in zip(features, content_hw.tolist(), strict=True):
            yield maps.kept(feature_map, (height, width))[None]

    return Embedding(maps.teacher_input, embed, 1, batch, numbers)


def _embed_views(teacher: FrozenTeacher, batch: int) -> Embed:
    device = next(teacher.parameters()).device

    def embed(
        squares: UInt8[Tensor, "m 3 s s"], content_hw: Int64[Tensor, "m 2"]
    ) -> Iterator[Float[Tensor, "m n c"]]:
        yield teacher(_pad_batch(squares, batch).to(device))[: len(squares)].float()

    return embed


def _pad_batch(squares: Tensor, batch: int) -> Tensor:
    """Pad to a full batch: a single shape to compile, and results independent of resuming."""
    return torch.cat([squares, squares[-1:].expand(batch - len(squares), *squares.shape[1:])])


def _print_summary(
    config: PretrainConfig, part: StorePart, share: ArrayShare, summary: PackSummary
) -> None:
    rounding = Rounding()
    for facts in summary.notes:
        rounding.add(facts[ROUNDING])
    numbers = {
        "numbers": config.features.numbers,
        "relative_error": rounding.relative(),
        "largest_error": rounding.largest_error,
    }
    written = report_packing(summary, part.folder, share, f"embedded of {part.key}", numbers)
    print(
        f"{part.key}: {_format_counts(config, part, summary.samples)}, {written}; "
        f"{config.features.numbers}: relative error {rounding.relative():.1e}, "
        f"largest {rounding.largest_error:.1e}"
    )


def _format_counts(config: PretrainConfig, part: StorePart, images: int) -> str:
    if config.features.kind == "photos":
        return counted(images, "image")
    views = images * views_of(config, part.heldout).count
    return f"{counted(views, 'view')} of {counted(images, 'image')}"
