"""The sets that a config names: no shard twice, none both trained on and held out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from efficientsam_pl.data.build import (
    build_order,
    build_reader,
    open_splits,
    warn_of_shared_content,
)
from efficientsam_pl.data.config import DataConfig, SetConfig
from efficientsam_pl.data.shards import ShardsError, open_shards

TarOf = Callable[[Path, dict[str, bytes]], Path]


@pytest.fixture
def shards(tmp_path: Path, tar_of: TarOf) -> Path:
    """Four shards of one to four samples, and a link to their folder."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(4):
        files = {f"{number}-{i}.txt": b"x" for i in range(number + 1)}
        tar_of(folder / f"s-{number}.tar", files)
    (tmp_path / "link").symlink_to(folder)
    return folder


@pytest.mark.parametrize(
    "heldout", ["{0}/s-3.tar", "{0}/../shards/s-3.tar", "{0}//s-3.tar", "{0}/../link/s-3.tar"]
)
def test_heldout_shards_are_left_out_however_they_are_named(heldout: str, shards: Path) -> None:
    config = DataConfig(train=f"{shards}/*.tar", heldout=heldout.format(shards))
    sets = open_splits(config)
    assert [shard.samples for shard in sets.train[0].shards] == [1, 2, 3]
    assert sets.heldout is not None
    assert sets.heldout.sizes() == [4]


@pytest.mark.parametrize("again", ["{0}/*.tar", "{0}/../shards/*.tar", "{0}/../link/s-1.tar"])
def test_shard_that_two_patterns_match_is_there_once(again: str, shards: Path) -> None:
    for _ in range(2):  # indexed the first time, found in the manifests of both names the second
        twice = open_shards(f"{shards}/*.tar, {again.format(shards)}")
        assert (len(twice), twice.corrupt) == (1 + 2 + 3 + 4, ())


def test_shard_that_is_lost_under_two_names_is_missed_once(shards: Path) -> None:
    pattern = f"{shards}/*.tar, {shards}/../link/*.tar"
    for names in (f"{shards}/*.tar", f"{shards}/../link/*.tar", pattern):
        open_shards(names)  # both names have a manifest that lists it
    (shards / "s-2.tar").unlink()
    rest = open_shards(pattern)
    assert len(rest) == 1 + 2 + 3 + 4
    assert [shards.kind for shards in rest.corrupt] == ["missing shard"]


def test_relative_patterns_name_the_same_shards(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shards)
    sets = open_splits(DataConfig(train="../shards/*.tar", heldout="s-0.tar"))
    assert sets.train[0].sizes() == [2, 3, 4]


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (DataConfig(train="/nowhere/*.tar"), "data.train: "),
        (DataConfig(train="{0}/*.tar", heldout="/nowhere/a.tar"), "data.heldout: "),
        (
            DataConfig(mixture=(SetConfig(shards="{0}/*.tar"), SetConfig(shards="/nowhere/*.tar"))),
            r"data.mixture\[1\].shards: ",
        ),
    ],
    ids=["train", "heldout", "mixture"],
)
def test_pattern_without_shards_is_named_with_its_key(
    config: DataConfig, key: str, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shards)
    here = DataConfig(
        train=config.train.replace("{0}", str(shards)),
        heldout=config.heldout,
        mixture=tuple(
            SetConfig(shards=part.shards.replace("{0}", str(shards))) for part in config.mixture
        ),
    )
    with pytest.raises(ShardsError, match=f"^{key}no shard matches '/nowhere"):
        open_splits(here)


def test_order_is_decided_by_seed_blocks_and_shares(shards: Path) -> None:
    config = DataConfig(train=f"{shards}/*.tar", block_shards=3, neighbours=2)
    assert build_order(open_splits(config), config, 5).decided_by() == {
        "run.seed": 5,
        "data.block_shards": 3,
        "data.neighbours": 2,
    }
    mixture = DataConfig(
        mixture=(
            SetConfig(shards=f"{shards}/s-0.tar", weight=3.0),
            SetConfig(shards=f"{shards}/s-1.tar"),
        )
    )
    decided = build_order(open_splits(mixture), mixture, 5).decided_by()
    assert [750, 250] in decided.values()


def test_cache_too_small_for_a_block_is_reported(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = DataConfig(
        train=f"{shards}/*.tar", cache_dir=str(tmp_path / "cache"), cache_gib=1e-6, block_shards=2
    )
    build_reader(open_splits(config).train, ("txt",), config)
    assert "holds less than data.block_shards=2 shards" in caplog.text


def test_heldout_shard_with_the_bytes_of_a_training_shard_is_named(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copies = tmp_path / "heldout"
    copies.mkdir()
    (copies / "a.tar").write_bytes((shards / "s-2.tar").read_bytes())
    (copies / "b.tar").write_bytes((shards / "s-3.tar").read_bytes())
    config = DataConfig(train=f"{shards}/s-[012].tar", heldout=f"{copies}/*.tar")
    warn_of_shared_content(open_splits(config))
    [record] = caplog.records
    assert record.getMessage().startswith(
        f"data.heldout: {copies}/a.tar has the same content as the training shard "
        f"{shards}/s-2.tar (1 held-out shard of 2 in all)"
    )


def test_disjoint_and_empty_shards_share_no_content(
    shards: Path, tar_of: TarOf, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("s-8.tar", "s-9.tar"):
        tar_of(shards / name, {})
    config = DataConfig(train=f"{shards}/*.tar", heldout=f"{shards}/s-[39].tar")
    warn_of_shared_content(open_splits(config))
    warn_of_shared_content(open_splits(DataConfig(train=f"{shards}/*.tar")))
    assert caplog.records == []
