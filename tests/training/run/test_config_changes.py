"""Each config key belongs to the recipe or not on purpose; a difference is reported by its key."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from efficientsam_pl.config import load as configs
from efficientsam_pl.config.diff import flatten
from efficientsam_pl.config.fields import resume_policy
from efficientsam_pl.data.config import SetConfig
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.training.run.config_changes import changes, one_line

# Sections of which every key is what a run learns: a new key belongs there, too
RECIPE = (
    *("crop", "masks.crop", "sami", "loss", "optim", "prompts", "model.freeze"),
    "teacher.encoder",
)
# Keys of mixed sections that are what a run learns; a new key must be classed here or there
MIXED = {
    "run": {"seed"},
    "data": {"block_shards", "neighbours", "last_batch", "decoding", "mixture"},
    "data.mixture": {"weight"},
    "data.coco": {"heldout_fraction", "crowds", "exif_orientation"},
    "teacher": {"kind", "timm_name", "seed", "image_size", "output"},
    "features": {"kind", "views", "seed", "numbers", "grid"},
    "masks": {
        *("masks_per_image", "min_area", "max_area", "min_stability"),
        *("min_predicted_iou", "clicks", "flip"),
    },
    "model": set(),
    "trainer": {"global_batch", "ema_decay"},
    "interruption": set(),
    "validation": set(),
}


def policies() -> dict[str, set[str]]:
    """The policy that each key has in the stages' configs, with those of a mixture's entries."""
    found: dict[str, set[str]] = {}
    for root in (PretrainConfig, FinetuneConfig):
        mixture = [f"data.mixture.{key}" for key in configs.as_dict(SetConfig(shards="a"))]
        for key in [*flatten(configs.as_dict(root())), *mixture]:
            found.setdefault(key, set()).add(resume_policy(root, key))
    return found


def test_every_key_is_classed_on_purpose() -> None:
    keys = policies()
    recipe = {key for key, policy in keys.items() if policy == {"recipe"}}
    assert all(len(policy) == 1 for policy in keys.values()), "the same in each stage"
    expected = {key for key in keys if key.startswith(tuple(f"{part}." for part in RECIPE))}
    expected |= {f"{section}.{name}" for section, names in MIXED.items() for name in names}
    assert recipe == expected


def test_policy_of_a_section_holds_for_every_key_below_it() -> None:
    for key in ("validation.photos", "validation.no_longer_there", "interruption.hang_s"):
        assert resume_policy(FinetuneConfig, key) == "free"
    assert resume_policy(FinetuneConfig, "no_section.no_key") == "recipe"


def config(*overrides: str) -> dict[str, Any]:
    return configs.as_dict(configs.load(FinetuneConfig, [], overrides))


def test_changes_are_told_by_kind() -> None:
    before = config("data.train=a/*.tar")
    now = config(
        "optim.peak_lr=0.0002",
        "trainer.ema_decay=0.9",
        "trainer.max_steps=500000",
        "data.train=b/*.tar",
        "data.workers=1",
        "run.dir=elsewhere",
    )
    assert changes(FinetuneConfig, before, now, "recipe") == [
        "optim.peak_lr was 0.0004, now 0.0002",
        "trainer.ema_decay was null, now 0.9",
    ]
    assert changes(FinetuneConfig, before, now, "logged") == [
        "data.train was a/*.tar, now b/*.tar",
        "trainer.max_steps was 437000, now 500000",
    ]
    assert changes(FinetuneConfig, before, before, "recipe") == []


@pytest.mark.parametrize("root", [PretrainConfig, FinetuneConfig])
def test_config_that_was_written_and_read_is_the_same(root: type[Any]) -> None:
    written = configs.load(root, [], ["data.mixture=[{shards: a}, {shards: b}]", "run.dir=1e-4"])
    read = OmegaConf.to_container(OmegaConf.create(configs.dump(written)))
    assert isinstance(read, dict)
    assert flatten(read) == flatten(configs.as_dict(written))


def test_entry_of_a_mixture_is_told_by_its_number() -> None:
    before, now = (
        config(f"data.mixture=[{{shards: a, weight: 1}}, {{shards: {path}, weight: {weight}}}]")
        for path, weight in (("b", 2), ("c", 3))
    )
    assert changes(FinetuneConfig, before, now, "recipe") == [
        "data.mixture[1].weight was 2.0, now 3.0"
    ]
    assert changes(FinetuneConfig, before, now, "logged") == ["data.mixture[1].shards was b, now c"]


def test_key_that_a_newer_program_has_is_no_change_but_one_that_is_gone_is() -> None:
    older = {"optim": {"peak_lr": 1.0, "momentum": 0.9}}
    newer = {"optim": {"peak_lr": 1.0, "layer_decay": None}, "masks": {"flip": 0.0}}
    assert changes(FinetuneConfig, older, newer, "recipe") == [
        "optim.momentum was 0.9, now not there"
    ]


@pytest.mark.parametrize(("count", "told"), [(1, "a"), (5, "a; a; a; a; a"), (7, "a; a; a; a; a")])
def test_long_lists_of_changes_are_cut(count: int, told: str) -> None:
    more = "; and 2 more" if count == 7 else ""
    assert one_line(["a"] * count) == told + more
