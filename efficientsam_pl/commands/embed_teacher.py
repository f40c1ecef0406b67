"""`efficientsam embed-teacher`: the teacher's features, once and for all, as shards."""

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
from efficientsam_pl.recipes.root_configs import PretrainConfig
from efficientsam_pl.recipes.sami.feature_store import (
    StorePart,
    describe,
    maps_of,
    named,
    store_parts,
    views_of,
)
from efficientsam_pl.training.parallelize import apply_compile


def run(config: PretrainConfig, share: ArrayShare) -> None:
    """Writes a share of the features of every set that the config names."""
    device = chosen_device(config.trainer.accelerator, "trainer.accelerator")
    parts = store_parts(config, open_splits(config.data))
    for part in parts:
        with named(config, part):  # before the teacher is built
            is_claimed(part.folder, describe(config, part.heldout))
            written_features(part.folder, part.images)
    teacher = FrozenTeacher(config.teacher, config.sami.student.grid()).to(device)
    if config.trainer.compile == "blocks":
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
                workers=0,  # processes that write: the teacher is in this one
                advance=lambda squares: progress.advance(task, squares),  # noqa: B023
            )
        _tell(config, part, share, summary)


def _embedding(config: PretrainConfig, heldout: bool, teacher: FrozenTeacher) -> Embedding:
    numbers = config.features.numbers
    batch = min(config.trainer.micro_batch, teacher.at_once)  # a photo of 1024 pixels is large
    if config.features.kind == "views":
        views = views_of(config, heldout)
        return Embedding(
            views.teacher_input, _of_squares(teacher, batch), views.count, batch, numbers
        )
    maps = maps_of(config, heldout)
    device = next(teacher.parameters()).device

    def embed(
        squares: UInt8[Tensor, "m 3 s s"], content_hw: Int64[Tensor, "m 2"]
    ) -> Iterator[Float[Tensor, "1 rows cols c"]]:
        whole, part = (_filled(of, batch).to(device) for of in (squares, content_hw))
        features = teacher.map_of(whole, part)[: len(squares)].float()
        for one, (height, width) in zip(features, content_hw.tolist(), strict=True):
            yield maps.kept(one, (height, width))[None]

    return Embedding(maps.teacher_input, embed, 1, batch, numbers)


def _of_squares(teacher: FrozenTeacher, batch: int) -> Embed:
    device = next(teacher.parameters()).device

    def embed(
        squares: UInt8[Tensor, "m 3 s s"], content_hw: Int64[Tensor, "m 2"]
    ) -> Iterator[Float[Tensor, "m n c"]]:
        yield teacher(_filled(squares, batch).to(device))[: len(squares)].float()

    return embed


def _filled(squares: Tensor, batch: int) -> Tensor:
    """As many as a whole batch has: one shape to compile, and one result whatever is resumed."""
    return torch.cat([squares, squares[-1:].expand(batch - len(squares), *squares.shape[1:])])


def _tell(config: PretrainConfig, part: StorePart, share: ArrayShare, summary: PackSummary) -> None:
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
        f"{part.key}: {_counted(config, part, summary.samples)}, {written}; "
        f"{config.features.numbers}: relative error {rounding.relative():.1e}, "
        f"largest {rounding.largest_error:.1e}"
    )


def _counted(config: PretrainConfig, part: StorePart, photos: int) -> str:
    if config.features.kind == "photos":
        return counted(photos, "photo")
    views = photos * views_of(config, part.heldout).count
    return f"{counted(views, 'view')} of {counted(photos, 'photo')}"
