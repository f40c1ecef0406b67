"""Check that finetuning learns, on the real images at hand and without released weights.

overfit: can a 512-pixel config learn COCO-MINI's training part by heart, and what is left of it on
held-out photos? interactive: does SAM's loop teach a model to gain from corrections, and to let go
of what a negative click points at? start: what is a SAMI-pretrained encoder worth beside an
MAE-pretrained and a fresh one? Every answer stands beside filling the box; what the untrained model
scores, a run prints before its first step.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, Row, report
from benchmarks.studies.coco_folders import images_at_hand, pack
from benchmarks.studies.finetune_runs import (
    Setting,
    finetuned,
    grid_ceiling,
    packed_mini,
    scored,
    untrained,
)
from benchmarks.studies.negative_click import negative_click
from benchmarks.studies.sami_learning import config_of
from benchmarks.studies.sami_runs import Setting as Pretraining
from benchmarks.studies.sami_runs import Spread, study_parser, write_markdown
from efficientsam_pl.evaluation.prompt_metrics import Scores
from efficientsam_pl.recipes.sami.recipe import SamiRecipe
from efficientsam_pl.training.train import train

NAME = "finetune_learns"
PROGRAM = "studies.finetune_learning"
_BOXES = {"prompts": {"box_share": 1.0, "box_jitter": 0.0, "max_clicks": 1}}
_PRETRAINED = ("mae", "sami")
_STARTS = ("scratch", *_PRETRAINED)
_FEW = 8  # photos
_LONG_SIDE = 640  # of the packed photos: as they are


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, scores, prints, and leaves runs, pictures and a Markdown file a question."""
    parser = study_parser(NAME, PROGRAM, (__doc__ or "").splitlines()[0], steps=None)
    parser.add_argument("question", choices=tuple(_QUESTIONS), help="which one")
    given = parser.parse_args(argv)
    ask, setting = _QUESTIONS[given.question]
    if given.steps is not None:
        setting = replace(setting, steps=given.steps)
    if given.quick:
        setting = replace(setting, steps=min(setting.steps, 8), side=128, width=64, depth=2)
    out = given.out / given.question
    rows = ask(setting, out, 1 if given.quick else given.seeds)
    command = f"python -m benchmarks.{PROGRAM} {given.question} --steps {setting.steps}"
    write_markdown(out / f"{NAME}.md", f"{NAME}: {given.question}", command, [str(setting)], rows)
    report(NAME, rows, Options(json=given.json, quick=given.quick))
    return 0


def overfit(setting: Setting, out: Path, seeds: int) -> list[Row]:
    """One run on boxes alone, scored on what it has seen and on what it has not."""
    return _by_heart("overfit", setting, out, None)


def overfit_few(setting: Setting, out: Path, seeds: int) -> list[Row]:
    """The same on a few photos, which minutes suffice to learn by heart."""
    return _by_heart("overfit_few", setting, out, _FEW)


def _by_heart(name: str, setting: Setting, out: Path, photos: int | None) -> list[Row]:
    sides = packed_mini(out / "photos", _LONG_SIDE, photos)
    changes: dict[str, Any] = {**_BOXES, "loss": {"single_mask": 0.25}}
    model = finetuned(setting, sides, out / "run", 0, changes).model
    seen, heldout = scored(model, sides.train), scored(model, sides.heldout)
    ceiling = grid_ceiling(sides.train, setting.side)
    way = (seen.box - seen.filled_box) / (ceiling - seen.filled_box)
    return [
        _row(f"{name}.box", "training photos, box mIoU; reference: filled box", seen, "box"),
        Row(
            id=f"{NAME}.{name}.ceiling",
            work=f"training photos, true masks through a grid of {setting.side // 4} cells a side",
            value=ceiling,
            unit="",
        ),
        Row(
            id=f"{NAME}.{name}.way",
            work="share of the way from the filled box to that ceiling",
            value=way,
            unit="",
            goal=0.75,
            better="higher",
        ),
        _row(f"{name}.heldout_box", "held-out photos; reference: filled box", heldout, "box"),
    ]


def interactive(setting: Setting, out: Path, seeds: int) -> list[Row]:
    """One run in SAM's loop, asked with corrections and with negative clicks."""
    sides = packed_mini(out / "photos", _LONG_SIDE)
    loop = {"prompts": {"rounds": "interactive", "corrections": 4, "repeats": 1}}
    asked = {"validation": {"clicks": [1, 3, 5], "later_clicks": "corrections"}}
    model = finetuned(setting, sides, out / "run", 0, {**loop, **asked}, interactive=True).model
    rows = []
    for name, pattern in (("train", sides.train), ("heldout", sides.heldout)):
        found = scored(model, pattern, (1, 3, 5), corrected=True)
        for clicks, fewer in ((3, 1), (5, 3)):
            rows.append(
                Row(
                    id=f"{NAME}.interactive.{name}.click{clicks}",
                    work=f"{name} photos, mIoU after {clicks} clicks less after {fewer} "
                    f"({found.clicks[clicks]:.3f}, {found.clicks[fewer]:.3f}); corrections",
                    value=found.clicks[clicks] - found.clicks[fewer],
                    unit="",
                    goal=0.0,
                    better="higher",
                )
            )
        rows.append(_row(f"interactive.{name}.box", "box; reference: filled box", found, "box"))
        shrunk = negative_click(model, pattern)
        if shrunk is None:
            continue
        rows += [
            Row(
                id=f"{NAME}.interactive.{name}.negative_area",
                work=f"{name} photos, area after a negative click on what a box's answer has too "
                f"much, over {shrunk.asked} masks; reference: before it (mean cells)",
                value=shrunk.after,
                unit="cells",
                reference=shrunk.before,
                goal=1.0,
            ),
            Row(
                id=f"{NAME}.interactive.{name}.negative_obeyed",
                work="the same: share of clicks that lie outside the new answer",
                value=shrunk.obeyed,
                unit="",
                goal=0.5,
                better="higher",
            ),
        ]
    return rows


def start(setting: Setting, out: Path, seeds: int) -> list[Row]:
    """The same run from three encoders: fresh, MAE's, SAMI's; the decoder is fresh in all.

    Each way pretrains once; seeds are the finetuning's.
    """
    sides = packed_mini(out / "photos", _LONG_SIDE)
    pretraining = Pretraining(steps=3 * setting.steps, width=setting.width, depth=setting.depth)
    photos = pack(images_at_hand(), out / "pretraining", 5, pretraining.long_side)
    encoders = {
        name: train(SamiRecipe(config_of(name, pretraining, photos, out / name, 0, None))).encoder
        for name in _PRETRAINED
    }
    found: dict[str, list[Scores]] = {name: [] for name in ("untrained", *_STARTS)}
    for seed in range(seeds):
        bare = untrained(setting, out / f"untrained-{seed}", seed)
        found["untrained"].append(scored(bare, sides.heldout))
        for name in _STARTS:
            changes: dict[str, Any] = {"masks": {"flip": 0.5}}
            if name in encoders:
                changes["model"] = {"encoder": str(encoders[name])}
            model = finetuned(setting, sides, out / f"{name}-{seed}", seed, changes).model
            found[name].append(scored(model, sides.heldout))
    return [row for name in found for row in _start_rows(name, found)]


def _start_rows(name: str, found: dict[str, list[Scores]]) -> list[Row]:
    """A start's box and 1-click mIoU beside those of a fresh encoder, seed by seed."""
    filled = Spread(tuple(s.filled_box for s in found[name])).mean()
    rows = []
    for prompt in ("box", "click1"):
        values = Spread(tuple(getattr(s, prompt) for s in found[name]))
        fresh = Spread(tuple(getattr(s, prompt) for s in found["scratch"]))
        rows.append(
            Row(
                id=f"{NAME}.start.{name}.{prompt}",
                work=f"held-out photos, {prompt} mIoU, {values.text(3)}; less a fresh encoder's "
                f"{values.less(fresh).text(3)}" + ("; reference: filled box" * (prompt == "box")),
                value=values.mean(),
                unit="",
                reference=filled if prompt == "box" else None,
                better="higher",
            )
        )
    return rows


def _row(name: str, work: str, scores: Scores, prompt: str) -> Row:
    return Row(
        id=f"{NAME}.{name}",
        work=work,
        value=getattr(scores, prompt),
        unit="",
        reference=scores.filled_box,
        goal=1.0,
        better="higher",
    )


_QUESTIONS: dict[str, tuple[Callable[[Setting, Path, int], list[Row]], Setting]] = {
    "overfit": (overfit, Setting(steps=2800, side=512, candidates=1, peak_lr=4e-3)),
    "overfit_few": (overfit_few, Setting(steps=700, side=512, neck=128, candidates=1)),
    "interactive": (interactive, Setting(steps=700)),
    "start": (start, Setting(steps=300)),
}


if __name__ == "__main__":
    sys.exit(main())
