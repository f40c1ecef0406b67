"""Check that finetuning learns, on the real images at hand and without released weights.

overfit: can a 512-pixel config memorize COCO-MINI's training part, and how does it score on
held-out images? interactive: does training in SAM's loop improve masks by corrections, and remove
what a negative click points at? start: how does a SAMI-pretrained encoder compare with an
MAE-pretrained and a random one? All scores are compared with filling the box; a run prints those of
the untrained model before its first step.
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
_FEW = 8  # images
_LONG_SIDE = 640  # of the packed images, unchanged


def main(argv: Sequence[str] | None = None) -> int:
    """Train, score, print, and write runs, images and a Markdown file per study."""
    parser = study_parser(NAME, PROGRAM, (__doc__ or "").splitlines()[0], steps=None)
    parser.add_argument("study", choices=tuple(_STUDIES), help="the study to run")
    given = parser.parse_args(argv)
    run_study, setting = _STUDIES[given.study]
    if given.steps is not None:
        setting = replace(setting, steps=given.steps)
    if given.quick:
        setting = replace(setting, steps=min(setting.steps, 8), side=128, width=64, depth=2)
    out = given.out / given.study
    rows = run_study(setting, out, 1 if given.quick else given.seeds)
    command = f"python -m benchmarks.{PROGRAM} {given.study} --steps {setting.steps}"
    write_markdown(out / f"{NAME}.md", f"{NAME}: {given.study}", command, [str(setting)], rows)
    report(NAME, rows, Options(json=given.json, quick=given.quick))
    return 0


def overfit(setting: Setting, out: Path, seeds: int) -> list[Row]:
    """Train on boxes only, and score on training and held-out images."""
    return _memorize("overfit", setting, out, None)


def overfit_few(setting: Setting, out: Path, seeds: int) -> list[Row]:
    """Train on a few images, which a model memorizes within minutes."""
    return _memorize("overfit_few", setting, out, _FEW)


def _memorize(name: str, setting: Setting, out: Path, images: int | None) -> list[Row]:
    sides = packed_mini(out / "photos", _LONG_SIDE, images)
    changes: dict[str, Any] = {**_BOXES, "loss": {"single_mask": 0.25}}
    model = finetuned(setting, sides, out / "run", 0, changes).model
    seen, heldout = scored(model, sides.train), scored(model, sides.heldout)
    ceiling = grid_ceiling(sides.train, setting.side)
    way = (seen.box - seen.filled_box) / (ceiling - seen.filled_box)
    return [
        _row(f"{name}.box", "training images, box mIoU; reference: filled box", seen, "box"),
        Row(
            id=f"{NAME}.{name}.ceiling",
            work=f"training images, true masks through a grid of {setting.side // 4} cells a side",
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
        _row(f"{name}.heldout_box", "held-out images; reference: filled box", heldout, "box"),
    ]


def interactive(setting: Setting, out: Path, seeds: int) -> list[Row]:
    """Train in SAM's loop, and score with corrections and with negative clicks."""
    sides = packed_mini(out / "photos", _LONG_SIDE)
    loop = {"prompts": {"rounds": "interactive", "corrections": 4, "repeats": 1}}
    validation = {"validation": {"clicks": [1, 3, 5], "later_clicks": "corrections"}}
    model = finetuned(
        setting, sides, out / "run", 0, {**loop, **validation}, interactive=True
    ).model
    rows = []
    for name, pattern in (("train", sides.train), ("heldout", sides.heldout)):
        result = scored(model, pattern, (1, 3, 5), corrected=True)
        for clicks, fewer in ((3, 1), (5, 3)):
            rows.append(
                Row(
                    id=f"{NAME}.interactive.{name}.click{clicks}",
                    work=f"{name} images, mIoU after {clicks} clicks less after {fewer} "
                    f"({result.clicks[clicks]:.3f}, {result.clicks[fewer]:.3f}); corrections",
                    value=result.clicks[clicks] - result.clicks[fewer],
                    unit="",
                    goal=0.0,
                    better="higher",
                )
            )
        rows.append(_row(f"interactive.{name}.box", "box; reference: filled box", result, "box"))
        shrunk = negative_click(model, pattern)
        if shrunk is None:
            continue
        rows += [
            Row(
                id=f"{NAME}.interactive.{name}.negative_area",
                work=f"{name} images, area after a negative click on the surplus of a box's "
                f"prediction, over {shrunk.corrected} masks; reference: before it (mean cells)",
                value=shrunk.after,
                unit="cells",
                reference=shrunk.before,
                goal=1.0,
            ),
            Row(
                id=f"{NAME}.interactive.{name}.negative_obeyed",
                work="the same: share of clicks outside the new prediction",
                value=shrunk.obeyed,
                unit="",
                goal=0.5,
                better="higher",
            ),
        ]
    return rows


def start(setting: Setting, out: Path, seeds: int) -> list[Row]:
    """Train from three encoders: random, MAE, SAMI; the decoder is always random.

    Each encoder is pretrained once; seeds are those of finetuning.
    """
    sides = packed_mini(out / "photos", _LONG_SIDE)
    pretraining = Pretraining(steps=3 * setting.steps, width=setting.width, depth=setting.depth)
    images = pack(images_at_hand(), out / "pretraining", 5, pretraining.long_side)
    encoders = {
        name: train(SamiRecipe(config_of(name, pretraining, images, out / name, 0, None))).encoder
        for name in _PRETRAINED
    }
    result: dict[str, list[Scores]] = {name: [] for name in ("untrained", *_STARTS)}
    for seed in range(seeds):
        bare = untrained(setting, out / f"untrained-{seed}", seed)
        result["untrained"].append(scored(bare, sides.heldout))
        for name in _STARTS:
            changes: dict[str, Any] = {"masks": {"flip": 0.5}}
            if name in encoders:
                changes["model"] = {"encoder": str(encoders[name])}
            model = finetuned(setting, sides, out / f"{name}-{seed}", seed, changes).model
            result[name].append(scored(model, sides.heldout))
    return [row for name in result for row in _start_rows(name, result)]


def _start_rows(name: str, result: dict[str, list[Scores]]) -> list[Row]:
    """Rows of box and 1-click mIoU compared with a random encoder, seed by seed."""
    filled = Spread(tuple(s.filled_box for s in result[name])).mean()
    rows = []
    for prompt in ("box", "click1"):
        values = Spread(tuple(getattr(s, prompt) for s in result[name]))
        fresh = Spread(tuple(getattr(s, prompt) for s in result["scratch"]))
        rows.append(
            Row(
                id=f"{NAME}.start.{name}.{prompt}",
                work=f"held-out images, {prompt} mIoU, {values.text(3)}; less a fresh encoder's "
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


_STUDIES: dict[str, tuple[Callable[[Setting, Path, int], list[Row]], Setting]] = {
    "overfit": (overfit, Setting(steps=2800, side=512, candidates=1, peak_lr=4e-3)),
    "overfit_few": (overfit_few, Setting(steps=700, side=512, neck=128, candidates=1)),
    "interactive": (interactive, Setting(steps=700)),
    "start": (start, Setting(steps=300)),
}


if __name__ == "__main__":
    sys.exit(main())
