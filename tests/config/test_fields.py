"""Descriptions of config fields: comments and paths."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.commands.quickstart.config import QuickstartConfig
from efficientsam_pl.config import load as configs
from efficientsam_pl.config.fields import PathKind, comments_of, find_field, leaves, path
from efficientsam_pl.config.load import ConfigError
from efficientsam_pl.data.config import SetConfig
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig

ROOTS = (PretrainConfig, FinetuneConfig, EvaluateConfig, QuickstartConfig)
NO_PATHS = {"timm_name", "best_metric"}  # texts that name no file


@dataclass
class Sample:
    """A config."""

    bare: int = 1
    behind: int = 2  # behind it
    # above it,
    # in two lines
    above: int = 3
    # both
    both: int = 4  # ways
    within: list[int] = field(
        # where the default is made
        default_factory=list
    )
    quoted: str = "# no comment"

    def method(self) -> int:
        local: int = 5  # of no field
        return local


def test_comments_are_those_above_within_and_behind_a_field() -> None:
    assert comments_of(Sample) == {
        "behind": ("behind it",),
        "above": ("above it,", "in two lines"),
        "both": ("both", "ways"),
        "within": ("where the default is made",),
    }


def test_a_class_without_a_source_has_no_comments() -> None:
    made: Any = dataclass(type("Made", (), {"__annotations__": {"x": int}, "x": 1}))
    assert comments_of(made) == {}


def test_every_text_of_a_config_is_a_path_or_is_known_not_to_be_one() -> None:
    """A new key must decide whether an empty value of it is a mistake."""
    texts = {
        leaf.key
        for root in (*ROOTS, SetConfig)
        for leaf in leaves(root)
        if leaf.type in (str, str | None)
        and leaf.path is None
        and leaf.key.rpartition(".")[2] not in NO_PATHS
    }
    assert texts == set()


def test_fields_are_found_by_full_keys_also_in_lists() -> None:
    shards = find_field(FinetuneConfig, "data.mixture[3].shards")
    assert shards is not None
    assert shards.metadata["path"] == PathKind(pattern=True)
    for key in ("data.mixture.shards", "data.nothing", "run", "run.dir.x", "optim.peak_lr[0]"):
        config_field = find_field(FinetuneConfig, key)
        assert config_field is None or config_field.name == "run"


PATHS = [(root, leaf.key) for root in ROOTS for leaf in leaves(root) if leaf.path is not None]


@pytest.mark.parametrize(
    ("root", "key"), PATHS, ids=lambda value: getattr(value, "__name__", value)
)
def test_an_empty_path_is_a_mistake_however_it_is_written(
    root: type[Any], key: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMPTY", "")
    section, _, name = key.rpartition(".")
    file = tmp_path / "mine.yaml"
    file.write_text("".join(f"{'  ' * i}{n}:\n" for i, n in enumerate(key.split("."))))
    ways: list[tuple[list[str], list[str]]] = [
        ([], [f"{key}="]),
        ([], [f"{key}=  "]),
        ([], [f"{section}={{{name}: }}"] if section else [f"{key}= # none"]),
        ([str(file)], []),
    ]
    for files, overrides in ways:
        with pytest.raises(ConfigError) as caught:
            configs.load(root, files, overrides)
        assert f"{key}= is empty, though it names a path" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["model.weights", "run.dir", "data.heldout", "features.dir"])
def test_a_variable_that_is_empty_is_a_mistake_too(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMPTY", "")
    root = PretrainConfig if key.startswith("features") else FinetuneConfig
    with pytest.raises(ConfigError, match=f"{key}= is empty"):
        configs.load(root, [], [f"{key}=${{oc.env:EMPTY}}"])


def test_null_still_says_that_there_is_none(tmp_path: Any) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {weights: null, encoder: ~}\ndata: {train: ''}\n")
    loaded = configs.load(FinetuneConfig, [str(file)], ["model.decoder=null", "data.heldout=null"])
    assert loaded == FinetuneConfig()


def test_an_empty_value_of_what_is_no_path_is_left_to_its_type() -> None:
    loaded = configs.load(FinetuneConfig, [], ["optim.clip_norm=", "trainer.best_metric="])
    assert loaded.optim.clip_norm is None


def test_an_empty_set_of_a_mixture_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.mixture\[1\]\.shards= is empty"):
        configs.load(PretrainConfig, [], ["data.mixture=[{shards: a.tar}, {shards: }]"])


def test_path_is_a_config_fieldwith_a_default() -> None:
    @dataclass
    class Named:
        first: str | None = path(None)
        other: str = path("x", written="folder")

    assert (Named().first, Named().other) == (None, "x")
