"""The studies at toy sizes: what they compare begins alike, and what they tell adds up."""

from pathlib import Path

import pytest
import torch

from benchmarks.harness import Row
from benchmarks.studies import coco_folders, feature_store, linear_probe, sami_learning
from benchmarks.studies.coco_folders import PackedImages, pack
from benchmarks.studies.sami_runs import Setting, Spread, online_loss, study_config, write_markdown
from efficientsam_pl.config.load import as_dict
from efficientsam_pl.recipes.sami import recipe as sami_recipe
from efficientsam_pl.recipes.sami.module import SamiPretraining
from efficientsam_pl.recipes.sami.recipe import SamiRecipe
from efficientsam_pl.training.train import train

TINY = Setting(steps=2, side=32, width=32, depth=1, batch=4, teacher_width=32, long_side=64)


@pytest.fixture(scope="module")
def photos(shared: Path) -> list[Path]:
    return sorted((shared / "data/imagenet_sample").glob("*/*.JPEG"))[:12]


@pytest.fixture(scope="module")
def packed(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> PackedImages:
    return pack(photos, tmp_path_factory.mktemp("photos"), 3, TINY.long_side)


def test_mean_and_deviation_of_three_seeds_by_hand() -> None:
    one, other = Spread((1.0, 2.0, 6.0)), Spread((1.0, 1.0, 1.0))
    assert (one.mean(), one.std()) == (3.0, pytest.approx(7**0.5))  # (4 + 1 + 9) / 2
    assert one.less(other).values == (0.0, 1.0, 5.0)
    assert one.text(2) == "3.00 ± 2.65"
    assert Spread((4.0,)).std() == 0


def test_markdown_holds_words_and_every_row(tmp_path: Path) -> None:
    rows = [
        Row(id="a.b", work="what it is", value=2.0, unit="s", reference=4.0, goal=0.6),
        Row(id="a.c", work="another", value=3.0, unit=""),
    ]
    write_markdown(tmp_path / "found.md", "Title", "python -m it", ["Words."], rows)
    text = (tmp_path / "found.md").read_text()
    assert text.startswith("# Title\n")
    assert "\n    python -m it\n\nWords.\n" in text
    assert "| a.b | 2 s | 4 | 0.5 | <= 0.6 | yes |" in text
    assert "| a.c | 3 |  |  |  |  |" in text
    assert "- a.b: what it is\n- a.c: another\n" in text


@pytest.mark.parametrize("way", ["sami", "mae"])
def test_both_ways_and_the_untrained_encoder_begin_with_the_same_weights(
    way: str, packed: PackedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[str, torch.Tensor] = {}

    class Watched(SamiPretraining):
        def on_train_start(self) -> None:
            begun.update({k: v.clone() for k, v in self.model.encoder.state_dict().items()})

    monkeypatch.setattr(sami_recipe, "SamiPretraining", Watched)
    config = sami_learning.config_of(way, TINY, packed, tmp_path / way, 5, None)
    train(SamiRecipe(config))
    fresh = linear_probe.untrained(config.sami.student, 5).state_dict()
    assert begun.keys() == fresh.keys()
    for name, value in fresh.items():
        assert torch.equal(begun[name], value), name


def test_control_differs_in_target_decoder_and_loss_alone(packed: PackedImages) -> None:
    ours, control = (
        as_dict(sami_learning.config_of(way, TINY, packed, Path("run"), 0, None))
        for way in ("sami", "mae")
    )
    differs = {
        f"{part}.{key}"
        for part, values in ours.items()
        for key, value in values.items()
        if value != control[part][key]
    }
    assert differs == {"teacher.kind", "sami.decoder", "loss.tokens"}


def test_loss_against_the_online_teacher_is_the_runs_own_where_it_learned_online(
    packed: PackedImages, tmp_path: Path
) -> None:
    config = study_config(TINY, packed, tmp_path / "run", 0)
    left = train(SamiRecipe(config))
    assert online_loss(config, tmp_path / "run") == pytest.approx(left.heldout_loss, rel=1e-5)


def test_every_kind_of_store_is_embedded_learned_from_and_measured(
    packed: PackedImages, tmp_path: Path
) -> None:
    outcomes = {
        store.name: feature_store.outcome(store, TINY, packed, tmp_path, range(1))
        for store in feature_store.kinds(photo_side=64, photo_grid=4)
    }
    online, *others = outcomes.values()
    assert online.online.values == pytest.approx(online.own_loss.values, rel=1e-5)
    assert (online.bytes_a_image, online.relative_error) == (0, 0)
    for name, found in outcomes.items():
        assert found.mean_feature.mean() > 0
        if found is not online:
            shards = (tmp_path / f"{name}-features-0" / "train").glob("*.tar")
            size = sum(path.stat().st_size for path in shards)
            assert found.bytes_a_image == size / packed.train_images
    kept, rounded, whole = others
    # a float16 has 11 bits: what is rounded off is at most 2^-11 of a number
    assert kept.relative_error < 2**-11
    assert kept.relative_error < rounded.relative_error < 0.02
    # views hold what the online teacher says of a crop; whole photos hold something else
    assert kept.own_loss.values == pytest.approx(kept.online.values, rel=1e-3)
    assert whole.own_loss.values != pytest.approx(whole.online.values, rel=1e-2)


def test_rows_of_stores_by_hand() -> None:
    def found(*losses: float, size: float, error: float) -> feature_store.Outcome:
        same = Spread(losses)
        return feature_store.Outcome(same, same, Spread((4.0,) * 3), size, error)

    outcomes = {
        "online": found(1.0, 2.0, 3.0, size=0, error=0),
        "views_float16": found(1.5, 2.5, 3.5, size=200, error=1e-4),
        "views_int8": found(1.7, 2.6, 3.6, size=110, error=1e-2),
        "photos_float16": found(3.0, 2.0, 1.0, size=900, error=1e-4),
    }
    rows = {row.id.removeprefix("sami_store."): row for row in feature_store.store_rows(outcomes)}
    assert (rows["online.heldout_loss"].value, rows["online.heldout_loss_std"].value) == (2, 1)
    assert rows["views_float16.heldout_loss"].ratio() == 2.5 / 2
    assert rows["views_float16.difference"].value == 0.5
    assert "std 0.00000" in rows["views_float16.difference"].work
    assert rows["photos_float16.difference"].value == 0
    assert "std 2.00000" in rows["photos_float16.difference"].work  # 2, 0 and -2
    assert rows["photos_float16.own_loss"].ratio() == 2 / 4
    assert rows["views_int8.bytes_to_float16"].ratio() == 110 / 200
    noise = rows["views_int8.noise"]
    assert noise.value == pytest.approx((0.2 + 0.1 + 0.1) / 3)
    assert (noise.reference, noise.met()) == (1, True)


def test_study_of_learning_leaves_rows_runs_and_pictures(
    shared: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFICIENTSAM_SHARED", str(shared))
    monkeypatch.setattr(sami_learning, "images_at_hand", lambda: photos)
    monkeypatch.setattr(linear_probe, "_STRENGTHS", (1e-2,))
    assert len(coco_folders.coco_images_at_hand()) == 159  # 162 files, three of them twice
    rows = {row.id: row for row in sami_learning.study(TINY, 2, tmp_path, None)}
    for way in ("sami", "mae"):
        assert rows[f"sami_learns.{way}.heldout_loss"].value > 0
        assert 0 <= rows[f"sami_learns.{way}.probe"].value <= 1
        assert rows[f"sami_learns.{way}.probe"].reference == 1 / 8
        assert (tmp_path / f"{way}.png").stat().st_size > 1000
        assert (tmp_path / f"{way}-1" / "encoder.safetensors").is_file()
    assert rows["sami_learns.gain_over_mae"].value == pytest.approx(
        rows["sami_learns.sami.probe"].value - rows["sami_learns.mae.probe"].value
    )
    text = (tmp_path / "sami_learns.md").read_text()
    assert "| 1 | " in text
    assert text.count("| 2 | ") == 1  # measured twice, listed once
