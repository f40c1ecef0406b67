"""Mixing, soft labels and their loss against timm's numbers, and by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efficientsam_pl.data.class_config import MixConfig
from efficientsam_pl.data.mixing import draw_mix
from efficientsam_pl.losses.label_loss import (
    label_losses,
    mix_images,
    soft_cross_entropy,
    soft_labels,
)
from efficientsam_pl.structures import ClassBatch


@pytest.fixture(scope="module")
def timm_mixup(golden: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    about = json.loads((golden / "downstream/mixup.json").read_text())
    return about, dict(np.load(golden / "downstream/mixup.npz"))


def test_draws_images_labels_and_loss_are_timms(
    timm_mixup: tuple[dict[str, Any], dict[str, np.ndarray]],
) -> None:
    about, arrays = timm_mixup
    p = about["parameters"]
    b, side, classes = p["B"], p["S"], p["K"]
    draw = np.random.RandomState(p["seed"])
    image = torch.from_numpy(draw.standard_normal((b, 3, side, side)).astype(np.float32))
    label = torch.from_numpy(arrays["labels"]).long()
    logits = torch.from_numpy(arrays["logits"])
    partner = torch.arange(b).flip(0)
    for number, record in enumerate(about["records"]):
        mix = draw_mix(np.random.RandomState(record["numpy_seed"]), MixConfig(), side)
        assert mix.own_share == pytest.approx(record["lam"], abs=1e-12)
        if record["kind"] == "cutmix":
            assert list(mix.box) == record["box_yl_yh_xl_xh"]
        own = torch.full((b,), mix.own_share)
        box = torch.tensor([mix.box] * b)
        mixed = mix_images(image, partner, own, box)
        np.testing.assert_allclose(mixed[:, :, ::8, ::8], arrays["out"][number], atol=1e-5)
        assert float(mixed.double().sum()) == pytest.approx(record["sum_out"], abs=1e-2)
        assert float(mixed.double().abs().sum()) == pytest.approx(record["abs_out"], abs=1e-2)
        target = soft_labels(label, partner, own, classes, 0.1)
        np.testing.assert_allclose(target, arrays["targets"][number], atol=1e-6)
        loss = soft_cross_entropy(logits, target).mean()
        assert float(loss) == pytest.approx(record["loss"], abs=1e-5)


def test_a_whole_share_leaves_images_and_labels() -> None:
    image = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    partner, own = torch.tensor([1, 0]), torch.ones(2)
    mixed = mix_images(image, partner, own, torch.zeros(2, 4, dtype=torch.int64))
    assert torch.equal(mixed, image.float())
    labels = soft_labels(torch.tensor([2, 0]), partner, own, 4, 0.0)
    assert labels.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]


def test_smoothed_labels_by_hand() -> None:
    labels = soft_labels(
        torch.tensor([1, 0]), torch.tensor([1, 0]), torch.tensor([0.75, 0.75]), 2, 0.2
    )
    # one-hots of .9 and .1, three quarters of the own
    assert labels.flatten().tolist() == pytest.approx([0.3, 0.7, 0.7, 0.3])


def batch_of(valid: list[bool]) -> ClassBatch:
    count = len(valid)
    return ClassBatch(
        image=torch.zeros(count, 3, 2, 2, dtype=torch.uint8),
        label=torch.zeros(count, dtype=torch.int64),
        partner=torch.arange(count),
        own_share=torch.ones(count),
        mix_box=torch.zeros(count, 4, dtype=torch.int64),
        sample_key=torch.zeros(count, dtype=torch.int64),
        valid=torch.tensor(valid),
        key=("",) * count,
    )


def test_loss_is_the_mean_over_valid_images() -> None:
    logits = torch.tensor([[0.0, 0.0], [3.0, 1.0], [torch.nan, 0.0]])
    loss = label_losses(logits, batch_of([True, True, False]), 0.0)
    expected = (np.log(2) + np.log1p(np.exp(-2))) / 2
    assert float(loss.total) == pytest.approx(expected, abs=1e-6)


def test_a_batch_without_a_valid_image_has_no_loss() -> None:
    assert float(label_losses(torch.zeros(1, 3), batch_of([False]), 0.1).total) == 0
