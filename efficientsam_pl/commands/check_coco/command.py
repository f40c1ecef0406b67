"""`efficientsam check-coco`: report on an annotated set before anything is trained on it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from efficientsam_pl.commands.check_coco.survey import SetOptions, Survey, survey_set
from efficientsam_pl.data.images.stated import exif_line
from efficientsam_pl.data.packing.split import copies_message
from efficientsam_pl.plural import counted
from efficientsam_pl.records import CorruptSample
from efficientsam_pl.storage.files import atomic_write

REPORT_VERSION = 1
_EXAMPLES, _CATEGORIES = 3, 5  # printed of a kind; the report has all


def run(options: SetOptions, report: Path | None) -> bool:
    """Check a set, print the report and write its file; return whether the set is clean.

    Raises:
        UserError: The set cannot be read at all.
    """
    survey = survey_set(options)
    for line in _lines(options, survey):
        print(line)
    if report is not None:
        with atomic_write(str(report)) as target:
            target.write(json.dumps(_content(options, survey), indent=1).encode() + b"\n")
    return survey.clean


def _lines(options: SetOptions, survey: Survey) -> Iterator[str]:
    yield f"{options.annotations} with {options.images}"
    yield f"images       {survey.images} listed, {survey.usable_images} usable"
    yield (
        f"annotations  {survey.annotations}: {counted(survey.objects, 'object')}, "
        f"{counted(survey.crowds, 'crowd')}, {counted(survey.empty_masks, 'empty mask')}"
        + (f", {survey.without_image} of unusable images" if survey.without_image else "")
    )
    yield f"sizes        {', '.join(f'{count} {size}' for size, count in survey.sizes.items())}"
    if survey.categories:
        yield f"categories   {_top(survey.categories)}"
    if line := exif_line(survey.turns):
        yield f"EXIF         {line}"
    if survey.undecided:
        images = counted(len(survey.undecided), "image")
        yield (
            f"             size fits both ways in {images}, such as {survey.undecided[0]}: compare "
            "--exif-orientation apply and ignore"
        )
    yield from _by_kind("left out", survey.left_out)
    yield from _by_kind("left out of evaluation only", survey.evaluation)
    yield from _by_kind("repaired", survey.repairs)
    if survey.copies:
        copies = sum(len(group) - 1 for group in survey.copies)
        yield f"copies: {copies_message(copies)}"
        yield from _examples([" = ".join(group) for group in survey.copies])
    yield from _verdicts(options, survey)


def _by_kind(title: str, samples: Sequence[CorruptSample]) -> Iterator[str]:
    """Yield each kind of entries with its count and the first examples."""
    for kind, group in _grouped(samples).items():
        yield f"{title}: {kind}: {len(group)}"
        yield from _examples([f"{s.key}: {s.detail}" if s.detail else s.key for s in group])


def _examples(texts: Sequence[str]) -> Iterator[str]:
    for text in texts[:_EXAMPLES]:
        yield f"  {text}"
    if len(texts) > _EXAMPLES:
        yield f"  ... and {len(texts) - _EXAMPLES} more"


def _grouped(samples: Sequence[CorruptSample]) -> dict[str, list[CorruptSample]]:
    by_kind: dict[str, list[CorruptSample]] = {}
    for sample in samples:
        by_kind.setdefault(sample.kind, []).append(sample)
    return by_kind


def _verdicts(options: SetOptions, survey: Survey) -> Iterator[str]:
    if options.kind == "lvis":
        yield "pack coco and finetune read COCO's format: check it without --kind lvis"
        return
    yield (
        f"pack coco would write {counted(survey.usable_images, 'image')} and "
        f"{counted(survey.masks, 'mask')}, {len(survey.left_out)} skipped"
    )
    left_out = "; ".join(f"{reason}: {count}" for reason, count in survey.untrainable.items())
    if survey.can_finetune:
        yield f"finetune can train on it: {counted(survey.trainable, 'image')} with masks"
    else:
        different = "" if survey.different == survey.trainable else " that are copies of one"
        yield (
            f"finetune cannot train on it: {counted(survey.trainable, 'image')} with masks"
            f"{different}; at least two are needed"
        )
    if left_out:
        yield f"  it would leave out {counted(survey.untrainable.total(), 'image')} ({left_out})"
    if survey.refusal:
        yield f"evaluate cannot use it: {survey.refusal}"


def _top(categories: Mapping[str, int]) -> str:
    ranked = sorted(categories.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{name} {count}" for name, count in ranked[:_CATEGORIES])
    more = len(ranked) - _CATEGORIES
    return listed if more <= 0 else f"{listed}, and {more} more"


def _content(options: SetOptions, survey: Survey) -> dict[str, Any]:
    def entries(samples: Sequence[CorruptSample]) -> list[dict[str, str]]:
        return [{"entry": s.key, "kind": s.kind, "detail": s.detail} for s in samples]

    return {
        "version": REPORT_VERSION,
        **vars(options),
        "clean": survey.clean,
        "finetune": survey.can_finetune,
        "counts": {
            "images": survey.images,
            "usable_images": survey.usable_images,
            "annotations": survey.annotations,
            "objects": survey.objects,
            "crowds": survey.crowds,
            "empty_masks": survey.empty_masks,
            "without_image": survey.without_image,
            "trainable_images": survey.trainable,
        },
        "sizes": dict(survey.sizes),
        "categories": dict(sorted(survey.categories.items())),
        "exif": dict(survey.turns),
        "exif_undecided": survey.undecided,
        "left_out": entries(survey.left_out),
        "left_out_of_evaluation": entries(survey.evaluation),
        "repaired": entries(survey.repairs),
        "copies": [list(group) for group in survey.copies],
        "evaluation_refused": survey.refusal or None,
        "images_left_out_of_finetuning": dict(survey.untrainable),
    }
