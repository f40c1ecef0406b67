"""Plain distillation: what is compared, and a run whose encoder finetuning reads with its neck."""

from pathlib import Path
from typing import Any

import pytest
import torch

from efficientsam_pl.config.load import ConfigError
from efficientsam_pl.export.consolidate import consolidate
from efficientsam_pl.models.config import EncoderConfig, SamiConfig
from efficientsam_pl.models.distillation import Distillation
from efficientsam_pl.models.vit import ImageEncoder
from efficientsam_pl.models.weights import read_weights
from efficientsam_pl.models.weights_source import WeightsError
from tests.training.tiny_stages import tiny_batch, tiny_stage

STUDENT = EncoderConfig(
    width=24, depth=2, heads=3, image_size=64, position_grid=4, neck_channels=16
)
OPTIONS = (
    "sami.decoder=none",
    "sami.mask_ratio=0",
    "sami.decoder_depth=8",
    "sami.decoder_width=512",
    "sami.decoder_heads=16",
    "teacher.encoder.neck_channels=32",
)


def test_loss_is_the_error_of_the_encoders_output_on_the_valid_images() -> None:
    stage = tiny_stage("distill-stored")
    batch = tiny_batch("distill-stored", seed=0)
    assert batch.valid.tolist() == [True, False]
    model: Any = stage.model
    features = model.image_encoder(model.pixel_norm(batch.image))[0]  # c gh gw
    expected = (features.flatten(1).T - batch.features[0]).square().mean()
    losses = stage.batch_losses(batch)
    torch.testing.assert_close(losses.total, expected)
    losses.total.backward()
    assert all(p.grad is not None for p in model.image_encoder.neck.parameters())


def test_every_token_is_seen_whatever_the_key() -> None:
    torch.manual_seed(0)
    model = Distillation(SamiConfig(student=STUDENT, mask_ratio=0.0, decoder="none"), 16)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    predicted, split = model(image, torch.tensor([1, 2]))
    assert torch.equal(predicted, model(image, torch.tensor([8, 9]))[0])
    assert split.visible.tolist() == [list(range(16))] * 2
    assert split.masked.shape == (2, 0)


def test_channels_of_another_teacher_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"neck_channels=16 must be the 32 channels"):
        Distillation(SamiConfig(student=STUDENT, mask_ratio=0.0, decoder="none"), 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"mask_ratio=0.75 must be 0"),
        ({"mask_ratio": 0.0, "decoder_depth": 4}, r"decoder_depth=4 has no effect"),
        ({"mask_ratio": 0.0, "encoder_norm": "layer_norm"}, r"encoder_norm=layer_norm"),
    ],
)
def test_keys_without_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamiConfig(decoder="none", **options)


@pytest.mark.parametrize("option", ["teacher.kind=pixels", "loss.tokens=masked"])
def test_targets_of_masked_tokens_are_refused(run: Any, tmp_path: Path, option: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=r"sami.decoder=none"):
        run("pretrain", tmp_path / "run", *OPTIONS, option)


def test_finetuning_begins_with_the_distilled_encoder_and_its_neck(
    run: Any, shards: Path, tmp_path: Path
) -> None:
    heldout = f"data.heldout={shards}/heldout-*.tar"
    result = run("pretrain", tmp_path / "distilled", heldout, *OPTIONS)
    assert result.heldout_loss < 10
    state = read_weights(str(result.encoder)).state
    names = {f"image_encoder.{name}" for name in ImageEncoder(STUDENT).state_dict()}
    assert {n.replace("blocks.1.", "blocks.0.") for n in names} == state.keys()  # one block
    tuned = run(
        "finetune",
        tmp_path / "masks",
        f"model.encoder={result.encoder}",
        *("trainer.max_steps=1", "optim.warmup_steps=0", "optim.peak_lr=1e-12"),
        *("trainer.checkpoint_every_steps=1", "trainer.validate_every_steps=1"),
    )
    consolidate(tuned.checkpoint, tmp_path / "tuned.safetensors")
    after = read_weights(str(tmp_path / "tuned.safetensors")).state
    for name, tensor in state.items():
        torch.testing.assert_close(after[name], tensor, msg=name)
