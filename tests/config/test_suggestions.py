"""Suggestions for unknown keys and config names."""

from typing import Any

import pytest

from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.config import load as configs
from efficientsam_pl.config.fields import leaves
from efficientsam_pl.config.load import ConfigError
from efficientsam_pl.config.suggestions import ALIASES
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig


def mistake(root: type[Any], files: list[str], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        configs.load(root, files, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("root", "key", "meant"),
    [
        (FinetuneConfig, "lr", "optim.peak_lr"),
        (FinetuneConfig, "optim.lr", "optim.peak_lr"),
        (PretrainConfig, "learning_rate", "optim.peak_lr"),
        (FinetuneConfig, "model.lr", "optim.peak_lr"),
        (FinetuneConfig, "batch_size", "trainer.global_batch"),
        (FinetuneConfig, "trainer.batch_size", "trainer.global_batch"),
        (FinetuneConfig, "epochs", "trainer.max_steps"),
        (FinetuneConfig, "trainer.max_epochs", "trainer.max_steps"),
        (FinetuneConfig, "steps", "trainer.max_steps"),
        (PretrainConfig, "seed", "run.seed"),
        (PretrainConfig, "trainer.seed", "run.seed"),
        (PretrainConfig, "features.random_seed", "features.seed"),
        (FinetuneConfig, "workers", "data.workers"),
        (FinetuneConfig, "num_workers", "data.workers"),
        (FinetuneConfig, "weights", "model.weights"),
        (PretrainConfig, "weights", "teacher.weights"),
        (EvaluateConfig, "weights", "model.weights"),
        (FinetuneConfig, "output_dir", "run.dir"),
        (FinetuneConfig, "max_step", "trainer.max_steps"),
        (FinetuneConfig, "gpus", "trainer.devices"),
        (FinetuneConfig, "optim.weight_dcay", "optim.weight_decay"),
    ],
)
def test_a_key_of_another_program_leads_to_ours(root: type[Any], key: str, meant: str) -> None:
    assert mistake(root, [], f"{key}=3") == f"unknown key {key}; did you mean {meant}?"


def test_a_key_that_is_like_none_gets_no_suggestion() -> None:
    assert mistake(FinetuneConfig, [], "qqqqqq=3") == "unknown key qqqqqq"


def test_aliases_lead_to_keys_that_are_there() -> None:
    known = {
        leaf.key.rpartition(".")[2] for r in (PretrainConfig, FinetuneConfig) for leaf in leaves(r)
    }
    assert set(ALIASES.values()) <= known


def test_a_config_that_does_not_ship_leads_to_the_nearest_and_to_its_neighbours() -> None:
    assert mistake(FinetuneConfig, ["finetune/tiny"]) == (
        "no such config file: finetune/tiny; did you mean finetune/ti? finetune/ has custom_coco, "
        "s, s_interactive, ti, ti_interactive; `efficientsam configs` lists all"
    )
    assert "did you mean quickstart?" in mistake(FinetuneConfig, ["quickstrat.yaml"])
    assert mistake(FinetuneConfig, ["zzz"]).endswith("zzz; `efficientsam configs` lists all")


@pytest.mark.parametrize(
    ("root", "word", "advice"),
    [
        (FinetuneConfig, "shards/a.tar", "'data.train=DIR/*.tar'"),
        (EvaluateConfig, "a.tar", "'shards=DIR/*.tar'"),
        (FinetuneConfig, "finetune/s", "-c finetune/s"),
    ],
)
def test_a_stray_word_gets_advice(root: type[Any], word: str, advice: str) -> None:
    line = mistake(root, [], word)
    assert line.startswith(f"'{word}' is no option and no key=value")
    assert advice in line


@pytest.mark.parametrize(
    ("root", "key"), [(FinetuneConfig, "data.train"), (EvaluateConfig, "shards")]
)
def test_a_pattern_that_the_shell_made_words_of_is_a_mistake(root: type[Any], key: str) -> None:
    line = mistake(root, [], f"{key}=s/00.tar", f"{key}=s/01.tar")
    assert line.startswith(f"{key}= is given twice, as s/00.tar and s/01.tar")
    assert "quote it" in line


def test_a_key_may_be_given_again_with_another_meaning() -> None:
    again = ["data.train=a/*.tar", "data.train=b/*.tar", "run.dir=a", "run.dir=b", "run.dir=b"]
    loaded = configs.load(FinetuneConfig, [], again)
    assert (loaded.data.train, loaded.run.dir) == ("b/*.tar", "b")
