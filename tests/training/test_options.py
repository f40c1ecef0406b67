"""Results of a run and effects of its keys: weights, averages, learning rate, resumes."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.checkpoints.state import is_weight
from efficientsam_pl.commands import consolidate
from efficientsam_pl.config import load as configs
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.weights import FORMAT, read_weights
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.training.datamodule import TrainingDataModule

Run = Callable[..., Any]


def traced(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "consumed.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, Tensor]:
    stored = CheckpointReader(folder / (folder / "latest").read_text().strip())
    return dict(stored.tensors(is_weight))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_encoder_tells_how_it_came_about(run: Run, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    left = run("pretrain", folder, f"data.heldout={shards}/heldout-*.tar")
    told = read_weights(str(left.encoder)).provenance
    assert told is not None
    assert (told["stage"], told["steps"], told["weights"]) == ("pretrain", 6, "last")
    losses = {
        "train/loss": pytest.approx(traced(folder)[-1]["loss"]),
        "heldout/loss": left.heldout_loss,
        "heldout/mean_feature_loss": left.mean_feature_loss,
    }
    assert {name: told["losses"][name] for name in losses} == losses
    assert told["teacher"]["teacher.encoder.width"] == 24
    assert told["teacher"]["teacher.seed"] == 0
    assert told["features"] is None
    assert configs.from_dict(PretrainConfig, told["config"]).trainer.max_steps == 6
    [data] = told["data"]
    assert (data["shards"], data["samples"]) == (3, 10)
    assert data["first"] == "train-000000.tar"
    assert data["fingerprint"] == open_shards(f"{shards}/train-*.tar").fingerprint()


def test_averaged_weights_are_a_plain_loop(stage: str, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    every = ("trainer.checkpoint_every_steps=1", "trainer.checkpoints_kept=9")
    run(stage, folder, *every, "trainer.ema_decay=0.75", "trainer.max_steps=4")
    states = [
        dict(CheckpointReader(path).tensors(is_weight))
        for path in sorted((folder / "checkpoints").iterdir())
    ]
    for name in (n for n in states[0] if n.startswith("model.")):
        average = name.replace("model.", "average.", 1)
        for before, after in pairwise(states):
            expected = 0.75 * before[average] + 0.25 * after[name]
            torch.testing.assert_close(after[average], expected, rtol=1e-5, atol=1e-7)
    out = consolidate.run(folder, tmp_path / "out.safetensors")
    file = read_weights(str(out))
    assert file.provenance is not None
    assert file.provenance["weights"] == "averaged"
    last = states[-1]
    prefix = "average.encoder." if stage == "pretrain" else "average."
    ours = "image_encoder.trunk." if stage == "pretrain" else ""
    for name, tensor in file.state.items():
        assert torch.equal(tensor, last[prefix + name.removeprefix(ours)])


def test_averages_follow_a_resumed_run(stage: str, run: Run, tmp_path: Path) -> None:
    for folder, stop in ((tmp_path / "straight", None), (tmp_path / "stopped", 3)):
        run(stage, folder, "trainer.ema_decay=0.5", stop_after=stop)
    run(stage, tmp_path / "stopped", "trainer.ema_decay=0.5")
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "straight"))


def test_recomputed_activations_change_nothing(stage: str, run: Run, tmp_path: Path) -> None:
    for kind in ("kept", "recomputed"):
        run(stage, tmp_path / kind, f"trainer.activations={kind}")
    assert same(weights(tmp_path / "kept"), weights(tmp_path / "recomputed"))


def test_learning_rate_follows_the_batch(run: Run, tmp_path: Path) -> None:
    """1e-3 is meant for 8 photos; 4 of them take half of it (one warm-up step, then the peak)."""
    scaled = ("optim.peak_lr=1e-3", "optim.peak_lr_batch=8", "trainer.max_steps=4")
    run("pretrain", tmp_path / "scaled", *scaled)
    run("pretrain", tmp_path / "plain", "optim.peak_lr=5e-4", "trainer.max_steps=4")
    assert same(weights(tmp_path / "scaled"), weights(tmp_path / "plain"))


def test_checkpoint_of_another_version_is_refused(stage: str, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(stage, folder, stop_after=3)
    [path] = (folder / "checkpoints").iterdir()
    manifest = path / "complete.json"
    manifest.write_text(manifest.read_text().replace('"version": 3', '"version": 4'))
    with pytest.raises(UserError, match=r"has checkpoint version 4, this program .*run\.resume"):
        run(stage, folder)


@pytest.mark.parametrize(
    ("stage", "change", "told"),
    [
        ("pretrain", "trainer.ema_decay=0.9", "trainer.ema_decay was None, now 'given'"),
        ("finetune", "trainer.ema_decay=0.9", "trainer.ema_decay was None, now 'given'"),
        ("pretrain", "sami.decoder_depth=2", "sami.decoder_depth was 1, now 2"),
        ("pretrain", "sami.positions=fixed", "sami.positions was 'learned', now 'fixed'"),
        ("pretrain", "sami.student.depth=2", "model.depth was 1, now 2"),
        ("finetune", "optim.layer_decay=0.8", "optim.layer_decay was None, now 'given'"),
        ("finetune", "model.freeze.image_encoder=true", "what is frozen was .*'image_encoder'"),
        ("finetune", "prompts.box_share=0", "what is frozen was .*top_left"),
    ],
)
def test_checkpoint_of_another_model_is_refused(
    stage: str, change: str, told: str, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(stage, folder, stop_after=3)
    with pytest.raises(UserError, match=r"holds a run of another config: .*run\.changed=accept"):
        run(stage, folder, change)
    with pytest.raises(UserError, match=f"is of another model: {told}.*run.resume=none"):
        run(stage, folder, change, "run.changed=accept")


def test_what_a_loss_of_weight_zero_would_teach_stays_as_it_is(run: Run, tmp_path: Path) -> None:
    """AdamW would decay it away otherwise."""
    unweighted = ("loss.single_mask=0", "loss.iou=0", "optim.peak_lr=0.1", "run.seed=3")
    run("finetune", tmp_path / "long", *unweighted)
    run("finetune", tmp_path / "short", *unweighted, "trainer.max_steps=2")
    long, short = weights(tmp_path / "long"), weights(tmp_path / "short")
    untaught = [n for n in long if "iou_head" in n or "hypernetworks.0." in n]
    assert untaught
    assert all(torch.equal(long[name], short[name]) for name in untaught)
    assert not same(long, short)


def test_a_finetuned_model_takes_the_released_form(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run("finetune", folder)
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.pt"
    for out in (ours, theirs):
        consolidate.run(folder, out)
    written = torch.load(theirs, weights_only=True)["model"]
    assert "prompt_encoder.bbox_top_left_embeddings.weight" in written
    assert "mask_decoder.output_hypernetworks_mlps.0.layers.1.0.weight" in written
    assert same(read_weights(str(theirs)).state, read_weights(str(ours)).state)


def test_another_layout_has_no_released_form(
    run: Run, stage_files: dict[str, Path], tmp_path: Path
) -> None:
    run("pretrain", tmp_path / "run")
    with pytest.raises(UserError, match=r"a \.pt file is for a finetuned model"):
        consolidate.run(tmp_path / "run", tmp_path / "encoder.pt")
    known = stage_files["interactive"].with_name("model.yaml")
    run("finetune", tmp_path / "more", f"model.name={known}")
    with pytest.raises(UserError, match=r"prompts.negative_clicks=True.*\.safetensors"):
        consolidate.run(tmp_path / "more", tmp_path / "model.pt")


def test_log_holds_what_the_guide_names(run: Run, shards: Path, tmp_path: Path) -> None:
    steps = ("trainer.max_steps=21", f"data.heldout={shards}/heldout-*.tar")
    left = run("pretrain", tmp_path / "run", *steps)
    logged = EventAccumulator(str(tmp_path / "run/log"))
    logged.Reload()
    losses = ("loss", "loss_all", "loss_masked", "loss_visible", "cosine")
    assert set(logged.Tags()["scalars"]) == {
        *(f"train/{name}" for name in (*losses, "gradient_norm")),
        *(f"heldout/{name}" for name in (*losses, "photos", "mean_feature_loss")),
        *("speed/images_per_second", "speed/mfu", "speed/data_wait", "speed/memory_gib"),
        *("lr-AdamW/pg1", "lr-AdamW/pg2", "epoch"),
    }
    assert all(0 < waited.value < 1 for waited in logged.Scalars("speed/data_wait"))
    losses_at, epochs_at = ([e.step for e in logged.Scalars(n)] for n in ("train/loss", "epoch"))
    assert epochs_at == losses_at
    losses_there = logged.Scalars("heldout/loss")
    assert losses_there[-1].value == pytest.approx(left.history.heldout[-1][1])


def test_loss_of_a_step_is_the_mean_over_all_its_micro_batches_hold(
    stage: str, run: Run, tmp_path: Path
) -> None:
    """Photos, or masks, of which photo n has 1 + n % 3."""
    folder = tmp_path / "run"
    run(stage, folder, "trainer.micro_batch=1", "trainer.max_steps=2")
    logged = CheckpointReader(folder / "checkpoints/step-00000002").values
    last = [line for line in traced(folder) if line["step"] == 1]
    assert len(last) == 4
    photos = [int(line["keys"][0].removeprefix("photo")) for line in last]
    held = [1 + photo % 3 if stage == "finetune" else 1 for photo in photos]
    summed = sum(line["loss"] * count for line, count in zip(last, held, strict=True))
    loss = logged[FORMAT]["losses"]["train/loss"]
    assert loss == pytest.approx(summed / sum(held), rel=1e-6)


@pytest.mark.parametrize("images", [0, 2])
def test_one_key_says_in_both_stages_how_many_images_are_drawn(
    stage: str,
    images: int,
    run: Run,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, counts = TrainingDataModule.first_images, list[int]()

    def counted(data: TrainingDataModule, count: int) -> Any:
        counts.append(count)
        return read(data, count)

    monkeypatch.setattr(TrainingDataModule, "first_images", counted)
    heldout = f"data.heldout={shards}/heldout-*.tar"
    run(stage, tmp_path, heldout, "trainer.max_steps=3", f"trainer.visualized_images={images}")
    assert counts == ([images] if images else [])
    assert (tmp_path / "pictures").exists() == (images > 0)
