"""Both stages run through their commands on tiny shards: stops, resumes, batches, records."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.checkpoints.state import join_state
from efficientsam_pl.commands import consolidate
from efficientsam_pl.config import load as configs
from efficientsam_pl.config.load import ConfigError
from efficientsam_pl.data.packing.images import MaskedImage, pack_images
from efficientsam_pl.errors import UserError
from efficientsam_pl.inference.hub import load_model
from efficientsam_pl.models.registry import segmenter_config
from efficientsam_pl.models.weights import FORMAT, read_weights
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig

Run = Callable[..., Any]
PHOTOS = {f"photo{i}" for i in range(10)}


def trace(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "consumed.jsonl").read_text().splitlines()]


def losses(folder: Path, stage: str = "pretrain") -> list[float]:
    """A loss a step: the mean over its photos, or its masks, of which photo n has 1 + n % 3."""
    by_step: dict[int, list[tuple[float, int]]] = {}
    for line in trace(folder):
        numbers = [int(key.removeprefix("photo")) for key in line["keys"] if key]
        held = sum(1 + n % 3 if stage == "finetune" else 1 for n in numbers)
        by_step.setdefault(line["step"], []).append((line["loss"], held))
    return [
        sum(loss * held for loss, held in some) / sum(held for _, held in some)
        for _, some in sorted(by_step.items())
    ]


def checkpoint(folder: Path) -> dict[str, Any]:
    stored = CheckpointReader(folder / (folder / "latest").read_text().strip())
    return join_state(stored.load_all(), stored.values)


def weights(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = checkpoint(folder)["state_dict"]
    return state


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def straight_runs() -> dict[str, Path]:
    return {}


@pytest.fixture
def straight(
    stage: str,
    run: Run,
    straight_runs: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Six steps of a stage without a stop, run once for all tests."""
    if stage not in straight_runs:
        folder = tmp_path_factory.mktemp(stage) / "run"
        run(stage, folder)
        straight_runs[stage] = folder
    return straight_runs[stage]


def test_a_finite_loss_is_traced_each_step(straight: Path) -> None:
    assert len(losses(straight)) == 6
    assert all(0 < loss < 1000 for loss in losses(straight))


def test_every_sample_is_used_once_an_epoch(straight: Path) -> None:
    lines = trace(straight)
    assert [line["step"] for line in lines] == list(range(6))
    assert {line["rank"] for line in lines} == {0}
    keys = [key for line in lines for key in line["keys"]]
    # 24 samples of 10: two epochs and four samples
    assert set(keys[:10]) == set(keys[10:20]) == PHOTOS
    assert keys[:10] != keys[10:20]
    assert len(set(keys[20:])) == 4


@pytest.mark.parametrize("stop", [3, 4])
def test_stopped_and_resumed_run_is_the_straight_one_bit_for_bit(
    stage: str, stop: int, straight: Path, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(stage, folder, stop_after=stop)
    assert (folder / "latest").read_text() == "checkpoints/step-00000003\n"
    kept = trace(folder)[:3]  # what was trained after the checkpoint is lost, and trained again
    (folder / "consumed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    run(stage, folder)
    assert trace(folder) == trace(straight)
    assert same(weights(folder), weights(straight))
    one, other = (c["optimizer_states"][0]["state"] for c in map(checkpoint, (folder, straight)))
    assert all(same(one[i], other[i]) for i in one)
    assert checkpoint(folder)["lr_schedulers"] == checkpoint(straight)["lr_schedulers"]


def test_resumed_run_may_cut_its_batch_otherwise(
    stage: str, straight: Path, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(stage, folder, stop_after=3)
    run(stage, folder, "trainer.micro_batch=2")
    assert losses(folder, stage) == pytest.approx(losses(straight, stage), rel=1e-5)
    flat = [key for line in trace(folder) for key in line["keys"]]
    assert flat == [key for line in trace(straight) for key in line["keys"]]


def test_workers_that_fetch_ahead_change_nothing(
    stage: str, straight: Path, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(stage, folder, "data.workers=2", stop_after=3)
    run(stage, folder, "data.workers=1")
    assert trace(folder) == trace(straight)
    assert same(weights(folder), weights(straight))


def test_same_seed_gives_the_same_weights_and_another_does_not(
    stage: str, straight: Path, run: Run, tmp_path: Path
) -> None:
    run(stage, tmp_path / "again")
    run(stage, tmp_path / "other", "run.seed=1")
    assert same(weights(tmp_path / "again"), weights(straight))
    assert not same(weights(tmp_path / "other"), weights(straight))
    assert trace(tmp_path / "other") != trace(straight)


def test_two_times_four_are_eight(stage: str, run: Run, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    eight = ("trainer.global_batch=8", "optim.peak_lr=1e-4")
    run(stage, whole, "trainer.micro_batch=8", *eight)
    run(stage, halves, "trainer.micro_batch=4", *eight)
    assert len(trace(halves)) == 2 * len(trace(whole)) == 12
    assert losses(halves, stage) == pytest.approx(losses(whole, stage), rel=1e-6)
    # Adam's first moments are the gradients' means
    one, other = (c["optimizer_states"][0]["state"] for c in map(checkpoint, (whole, halves)))
    for i in one:
        torch.testing.assert_close(one[i]["exp_avg"], other[i]["exp_avg"], rtol=1e-3, atol=1e-6)


def test_schedule_follows_the_steps_not_the_micro_batches(
    stage: str, run: Run, tmp_path: Path
) -> None:
    run(stage, tmp_path / "run", "trainer.micro_batch=1", "trainer.max_steps=4", stop_after=3)
    assert checkpoint(tmp_path / "run")["global_step"] == 3
    [schedule] = checkpoint(tmp_path / "run")["lr_schedulers"]
    assert schedule["last_epoch"] == 3


def test_folder_of_a_run_holds_what_is_promised(straight: Path, stage: str) -> None:
    names = {path.name for path in straight.iterdir()}
    encoder = {"encoder.safetensors", "pictures"} if stage == "pretrain" else set()
    assert names == encoder | {
        "config.yaml",
        "checkpoints",
        "latest",
        "log",
        "data_report.json",
        "consumed.jsonl",
    }
    saved = sorted(path.name for path in (straight / "checkpoints").iterdir())
    assert saved == ["step-00000003", "step-00000006"]
    assert (straight / "latest").read_text() == "checkpoints/step-00000006\n"
    assert list((straight / "log").glob("events.out.tfevents.*"))


def test_config_in_the_folder_and_in_the_checkpoint_is_the_runs(straight: Path, stage: str) -> None:
    root = PretrainConfig if stage == "pretrain" else FinetuneConfig
    config = configs.load(root, [str(straight / "config.yaml")], [])
    header = checkpoint(straight)[FORMAT]
    assert header["stage"] == stage
    assert configs.from_dict(root, header["config"]) == config
    assert config.trainer.max_steps == 6
    assert header["versions"]["torch"] == version("torch")


def test_only_the_newest_checkpoints_are_kept(stage: str, run: Run, tmp_path: Path) -> None:
    every = ("trainer.checkpoint_every_steps=1", "trainer.checkpoints_kept=2")
    run(stage, tmp_path / "run", *every)
    saved = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert saved == ["step-00000005", "step-00000006"]


def test_last_step_is_saved_even_where_none_is_due(stage: str, run: Run, tmp_path: Path) -> None:
    run(stage, tmp_path / "run", "trainer.checkpoint_every_steps=4")
    saved = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert saved == ["step-00000004", "step-00000006"]


def test_run_begun_anew_in_its_folder_forgets_the_old_one(
    stage: str, straight: Path, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(stage, folder, "run.seed=5", "trainer.max_steps=9")
    (folder / "consumed.jsonl").unlink()
    run(stage, folder, "run.resume=none", "trainer.checkpoints_kept=1")
    assert (folder / "latest").read_text() == "checkpoints/step-00000006\n"
    assert same(weights(folder), weights(straight))
    assert trace(folder) == trace(straight)


def test_finished_run_that_is_started_again_does_nothing_and_says_so(
    stage: str, straight: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    run(stage, folder)
    assert "nothing to train" in capsys.readouterr().out
    assert trace(folder) == trace(straight)
    assert same(weights(folder), weights(straight))
    assert (folder / "data_report.json").read_text() == (straight / "data_report.json").read_text()


def test_latest_that_names_nothing_is_a_users_mistake(
    stage: str, straight: Path, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match=r"no such checkpoint: .*step-00000006.*run\.resume=none"):
        run(stage, folder)


def test_teacher_is_not_in_the_checkpoint(run: Run, tmp_path: Path) -> None:
    run("pretrain", tmp_path / "run", "trainer.max_steps=2")
    names = weights(tmp_path / "run").keys()
    assert names
    assert all(name.startswith("model.") for name in names)


def test_heldout_loss_is_measured_beside_its_baseline(
    run: Run, shards: Path, tmp_path: Path
) -> None:
    heldout = f"data.heldout={shards}/heldout-*.tar"
    left = run("pretrain", tmp_path / "run", heldout)
    assert {step for step, _ in left.history.heldout} == {3, 6}
    assert left.heldout_loss == pytest.approx(left.history.heldout[-1][1], rel=1e-6)
    assert left.mean_feature_loss > 0
    finetuned = run("finetune", tmp_path / "second", heldout)
    assert [step for step, _ in finetuned.history.heldout] == [3, 6]


def test_validation_changes_no_weight(
    stage: str, straight: Path, run: Run, shards: Path, tmp_path: Path
) -> None:
    run(stage, tmp_path / "run", f"data.heldout={shards}/heldout-*.tar")
    assert same(weights(tmp_path / "run"), weights(straight))


def test_consolidated_segmenter_is_the_trained_one_bit_for_bit(
    run: Run, tmp_path: Path, model_file: Path
) -> None:
    run("finetune", tmp_path / "run")
    trained = {k.removeprefix("model."): v for k, v in weights(tmp_path / "run").items()}
    out = consolidate.run(tmp_path / "run", tmp_path / "model.safetensors")
    for loaded in (load_model(None, str(out)), load_model(str(model_file), str(out))):
        assert same(loaded.state_dict(), trained)
        assert loaded.config == segmenter_config(str(model_file))
    told = read_weights(str(out)).provenance
    assert told is not None
    assert (told["stage"], told["steps"], told["weights"]) == ("finetune", 6, "last")


def test_finetuning_starts_from_the_pretrained_encoder(
    run: Run, tmp_path: Path, model_file: Path
) -> None:
    pretrained = run("pretrain", tmp_path / "first")
    file = read_weights(str(pretrained.encoder)).state
    trunk = {k.removeprefix("image_encoder.trunk."): v for k, v in file.items()}
    saved = weights(tmp_path / "first")
    assert same(
        trunk,
        {k.removeprefix("model.encoder."): v for k, v in saved.items() if "model.encoder." in k},
    )
    run(
        "finetune",
        tmp_path / "second",
        f"model.encoder={pretrained.encoder}",
        "optim.peak_lr=1e-12",  # so small that the weights stay where they began
        "optim.weight_decay=0",
        "trainer.max_steps=2",
    )
    begun = weights(tmp_path / "second")
    for name, tensor in trunk.items():
        found = begun[f"model.image_encoder.trunk.{name}"]
        torch.testing.assert_close(found, tensor, rtol=0, atol=1e-6)


def test_pretrained_encoder_is_no_segmenter(run: Run, tmp_path: Path) -> None:
    pretrained = run("pretrain", tmp_path / "run", "trainer.max_steps=2")
    with pytest.raises(ConfigError, match="holds a pretrained encoder, not a segmenter"):
        load_model(None, str(pretrained.encoder))
    with pytest.raises(UserError, match="holds no prompt encoder and mask decoder"):
        run("finetune", tmp_path / "second", f"model.weights={pretrained.encoder}")


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    """Ten photos, three of them with a broken JPEG, and a shard that breaks off at once."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in shards.glob("train-*.tar"):
        shutil.copy(path, folder)
    data = bytearray((folder / "train-000000.tar").read_bytes())
    starts = [i for i in range(0, len(data), 512) if data[i : i + 3] == b"\xff\xd8\xff"]
    for start in starts[:3]:
        data[start : start + 2] = b"\x00\x00"
    (folder / "train-000000.tar").write_bytes(bytes(data))
    (folder / "train-999999.tar").write_bytes(b"broken off")
    return folder


def test_report_counts_damage_and_training_goes_on(
    stage: str, run: Run, damaged: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train = f"data.train={damaged}/*.tar"
    run(stage, folder, train, "data.max_bad_fraction=0.5", "trainer.max_steps=5")
    report = json.loads((folder / "data_report.json").read_text())
    # twenty samples are two epochs: three broken photos, twice
    assert (report["seen"], report["good"]) == (20, 14)
    assert report["bad"] == {"bad photo": 6}
    assert report["shards"] == {f"{damaged}/train-000000.tar": {"bad photo": 6}}
    [broken] = report["broken_shards"]
    assert (broken["shard"], broken["kind"]) == (f"{damaged}/train-999999.tar", "broken tar")
    named = [entry["key"] for entry in report["list"]]
    assert len(named) == len(set(named)) == 3  # each is listed once, however often it was seen
    keys = Counter(key for line in trace(folder) for key in line["keys"])
    assert keys == dict.fromkeys(PHOTOS, 2)  # a damaged sample keeps its slot
    assert all(0 <= loss < 1000 for loss in losses(folder))


def test_too_much_damage_stops_the_run_with_both_numbers(
    stage: str, run: Run, damaged: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    limits = ("data.max_bad_fraction=0.2", "trainer.max_steps=30")
    with pytest.raises(UserError, match=r"12 of 40 samples .* data\.max_bad_fraction=0\.2"):
        run(stage, folder, f"data.train={damaged}/*.tar", *limits)
    report = json.loads((folder / "data_report.json").read_text())
    assert report["bad"]["bad photo"] == 12


def test_batch_of_nothing_but_damage_is_survived(
    stage: str, run: Run, damaged: Path, tmp_path: Path
) -> None:
    only = damaged / "only"
    only.mkdir()
    data = bytearray((damaged / "train-000000.tar").read_bytes())
    for start in range(0, len(data), 512):
        if data[start : start + 3] == b"\xff\xd8\xff":
            data[start : start + 2] = b"\x00\x00"
    (only / "a.tar").write_bytes(bytes(data))
    folder = tmp_path / "run"
    run(stage, folder, f"data.train={only}/*.tar", "data.max_bad_fraction=1")
    assert losses(folder) == [0.0] * 6
    assert all(bool(tensor.isfinite().all()) for tensor in weights(folder).values())


def test_missing_shards_are_a_users_mistake(stage: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shard matches '/nowhere"):
        run(stage, tmp_path / "run", "data.train=/nowhere/*.tar")


def test_gradient_is_clipped_where_asked(stage: str, run: Run, tmp_path: Path) -> None:
    run(stage, tmp_path / "run", "optim.clip_norm=1e-6", "trainer.max_steps=2")
    state = checkpoint(tmp_path / "run")["optimizer_states"][0]["state"]
    norm = torch.stack([s["exp_avg_sq"].sum() for s in state.values()]).sum().sqrt()
    assert float(norm) <= 1e-6


def test_packed_image_without_masks_is_trained_around(
    run: Run, shards: Path, tmp_path: Path
) -> None:
    pack_images(map(bare_image, range(4)), tmp_path, "bare")
    run("finetune", tmp_path / "run", f"data.train={tmp_path}/bare-*.tar")
    assert [line["loss"] for line in trace(tmp_path / "run")] == [0.0] * 6


def bare_image(number: int) -> MaskedImage:
    return MaskedImage(f"bare{number}", np.full((32, 32, 3), 9 * number, dtype=np.uint8), ())
