"""Finetune on a custom COCO-format data set, compared with the initial model and filled boxes.

The set is COCO-MINI and tiny_coco's training part in one annotation file. Without `--weights` the
initial model is small and random, and all of it is trained: no released weights are needed. The
scores are those that the run prints for its held-out images, before the first step and at the end.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, Row, report
from benchmarks.studies.coco_folders import data_folder
from benchmarks.studies.finetune_runs import LOSS, MINI, Setting, load_run, scored, untrained
from benchmarks.studies.sami_runs import Spread, study_parser, write_markdown
from efficientsam_pl.config.load import dump, load
from efficientsam_pl.evaluation.prompt_metrics import Scores
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.promptable.recipe import PromptableRecipe
from efficientsam_pl.training.train import train

NAME = "finetune_own"
PROGRAM = "studies.custom_coco"
_TINY = ("coco/tiny_coco/annotations/instances_train2017.json", "coco/tiny_coco/images/train2017")
_PROMPTS = ("box", "click1")
# Minimum area of scored masks, as a share of the image: all, or about 16 cells of the mask grid
_SMALLEST = (0.0, 0.001)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and score each seed, print, and write runs and a Markdown file to a folder."""
    parser = study_parser(NAME, PROGRAM, (__doc__ or "").splitlines()[0], steps=1000)
    parser.add_argument("--side", type=int, default=512, help="of the model's square, pixels")
    given = parser.parse_args(argv)
    setting = Setting(given.steps, given.side, candidates=1)
    if given.quick:
        setting = Setting(min(given.steps, 8), 128, width=64, depth=2, masks=4)
    rows = study(setting, 1 if given.quick else given.seeds, given.out)
    command = f"python -m benchmarks.{PROGRAM} --steps {setting.steps} --side {setting.side}"
    write_markdown(given.out / f"{NAME}.md", "A custom data set", command, [str(setting)], rows)
    report(NAME, rows, Options(json=given.json, quick=given.quick))
    return 0


def study(setting: Setting, seeds: int, out: Path) -> list[Row]:
    """Score every seed before and after training; finished runs are reused."""
    annotations = joined(out / "instances.json")
    name = out / "model.yaml"
    name.write_text(dump(setting.model()))
    rows = []
    folders = [out / f"seed-{seed}" for seed in range(seeds)]
    for seed, folder in enumerate(folders):
        train(PromptableRecipe(config_of(setting, annotations, name, folder, seed)))
    for smallest in _SMALLEST:
        before, after = [], []
        for seed, folder in enumerate(folders):
            heldout = f"{folder}/shards/heldout-*.tar"
            start = untrained(setting, folder, seed)
            before.append(scored(start, heldout, smallest=smallest))
            after.append(scored(load_run(folder), heldout, smallest=smallest))
        for prompt in _PROMPTS:
            rows += _rows(prompt, before, after, smallest)
    return rows


def config_of(
    setting: Setting, annotations: Path, model: Path, folder: Path, seed: int
) -> FinetuneConfig:
    """Config of `efficientsam finetune -c finetune/custom_coco` with these overrides."""
    overrides = {
        "data.coco.annotations": annotations,
        "data.coco.images": data_folder() / "coco",
        "data.workers": 0,
        "model.name": model,
        "model.freeze.image_encoder": "false",
        "masks.masks_per_image": setting.masks,
        "prompts.box_share": 0.8,
        "prompts.box_jitter": 0.0,  # scored boxes are tight
        "loss.dice": LOSS["dice"],
        "optim.peak_lr": setting.peak_lr,
        "trainer.max_steps": setting.steps,
        "trainer.micro_batch": setting.batch,
        "trainer.global_batch": setting.batch,
        "trainer.accelerator": setting.accelerator,
        "trainer.validate_every_steps": max(1, setting.steps // 4),
        "trainer.checkpoint_every_steps": setting.steps,
        "optim.warmup_steps": max(1, setting.steps // 20),
        "run.dir": folder,
        "run.seed": seed,
    }
    given = [f"{key}={value}" for key, value in overrides.items()]
    return load(FinetuneConfig, ["finetune/custom_coco"], given)


def joined(path: Path) -> Path:
    """Merge both sets into one annotation file, each image once."""
    whole: dict[str, list[Any]] = {"images": [], "annotations": []}
    seen: set[int] = set()
    for annotations, images in (MINI, _TINY):
        content = json.loads((data_folder() / annotations).read_text())
        fresh = {image["id"] for image in content["images"]} - seen
        folder = images.removeprefix("coco/")
        for image in content["images"]:
            if image["id"] in fresh:
                named = {**image, "file_name": f"{folder}/{image['file_name']}"}
                whole["images"].append(named)
        whole["annotations"] += [a for a in content["annotations"] if a["image_id"] in fresh]
        seen |= fresh
    for number, annotation in enumerate(whole["annotations"], start=1):
        annotation["id"] = number  # two sets may use the same id
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole))
    return path


def _rows(
    prompt: str, before: Sequence[Scores], after: Sequence[Scores], smallest: float
) -> list[Row]:
    """Rows after training, compared with the start, and for boxes with the filled box."""
    start, end = (
        Spread(tuple(getattr(scores, prompt) for scores in side)) for side in (before, after)
    )
    images, masks, seeds = after[0].photos, after[0].masks, len(after)
    name = f"{NAME}.{prompt}" + (f".from_{smallest:g}" if smallest else "")
    rows = [
        Row(
            id=f"{name}.over_start",
            work=f"{images} held-out images, {masks} masks of at least {smallest:.1%} of their "
            f"image, {seeds} seeds: {prompt} mIoU {end.text(3)}; reference: the start, "
            f"{start.text(3)}",
            value=end.mean(),
            unit="",
            reference=start.mean(),
            goal=1.0,
            better="higher",
        )
    ]
    if prompt == "box":
        filled = Spread(tuple(scores.filled_box for scores in after))
        rows.append(
            Row(
                id=f"{name}.over_filled_box",
                work=f"the same; less the filled box, seed by seed: {end.less(filled).text(3)}; "
                "reference: the filled box",
                value=end.mean(),
                unit="",
                reference=filled.mean(),
                goal=1.0,
                better="higher",
            )
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
