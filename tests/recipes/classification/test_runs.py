"""Runs of the stage: accumulation, ranks, resumption, accuracy, exported files."""

from pathlib import Path

import pytest
import torch

from efficientsam_pl.data.datasets.labelled_images import LabelledImage, LabelledImages
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.errors import UserError
from efficientsam_pl.export.consolidate import consolidate
from efficientsam_pl.inference.classifier import load_classifier, scoring_view
from efficientsam_pl.models.classifier import Classifier
from efficientsam_pl.models.classifier_config import ClassifierConfig
from efficientsam_pl.models.classifier_weights import load_classifier_file
from tests.recipes.classification.conftest import CLASSES, Run
from tests.recipes.finished_runs import assert_same_step, checkpoint, gradients, logged, run_pair

TWO = ("trainer.micro_batch=4", "trainer.devices=2")
WAYS = {
    "ddp": ("trainer.strategy=ddp",),
    "fsdp": ("trainer.strategy=fsdp",),
    "compiled": ("trainer.strategy=ddp", "trainer.compile=step", "trainer.activations=recomputed"),
}


VALIDATED = "trainer.validate_every_steps=2"
ONE_STEP = ("trainer.max_steps=2", "trainer.checkpoint_every_steps=1", "trainer.ema_decay=0.5")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classify") / "alone"


@pytest.fixture
def one(alone: Path, classify: Run) -> Path:
    """A run of one process."""
    if not alone.exists():
        classify(alone, *ONE_STEP)
    return alone


@pytest.mark.parametrize("micro_batch", [2, 4])
def test_accumulated_step_is_that_of_the_whole_batch(
    micro_batch: int, one: Path, classify: Run, tmp_path: Path
) -> None:
    """With corrupt images, mixing, smoothing, erasing, RandAugment and drop path."""
    classify(tmp_path / "run", *ONE_STEP, f"trainer.micro_batch={micro_batch}")
    assert_same_step(tmp_path / "run", one)


def test_recomputed_activations_take_the_same_step(
    one: Path, classify: Run, tmp_path: Path
) -> None:
    classify(tmp_path / "run", *ONE_STEP, "trainer.activations=recomputed")
    assert_same_step(tmp_path / "run", one)


def test_half_precision_takes_nearly_the_same_step(
    one: Path, classify: Run, tmp_path: Path
) -> None:
    classify(tmp_path / "run", *ONE_STEP, "trainer.precision=bf16")
    measured, expected = gradients(tmp_path / "run"), gradients(one)
    assert measured.dtype == torch.float32
    assert float((measured - expected).norm() / expected.norm()) < 0.03


def test_resumed_run_is_the_uninterrupted_one_to_the_bit(classify: Run, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    classify(whole)
    classify(cut, stop_after=3)
    classify(cut, "data.workers=1")
    expected, resumed = (checkpoint(folder, 6)["state_dict"] for folder in (whole, cut))
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name


def test_replayed_steps_are_the_steps_and_resume(
    classify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    with torch._dynamo.config.patch(recompile_limit=8, optimize_ddp=True):
        classify(tmp_path / "plain")
        classify(tmp_path / "replayed", "trainer.compile=step", stop_after=3)
        classify(tmp_path / "replayed", "trainer.compile=step")
    expected, replayed = (
        checkpoint(tmp_path / name, 6)["state_dict"] for name in ("plain", "replayed")
    )
    assert expected.keys() == replayed.keys()
    for name, value in expected.items():
        assert torch.equal(replayed[name], value), name


def test_micro_batch_that_cuts_a_group_is_refused(classify: Run, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"micro_batch=1 \(on 1 ranks\) cuts the groups of mix\.gro"
    ):
        classify(tmp_path / "run", "trainer.micro_batch=1")


def test_odd_batch_in_one_piece_trains(classify: Run, tmp_path: Path) -> None:
    result = classify(
        tmp_path / "run", "trainer.global_batch=7", "trainer.micro_batch=7", "trainer.max_steps=2"
    )
    assert result.checkpoint.name == "step-00000002"


def test_it_learns_colours_and_logs_what_its_file_scores(
    classify: Run, labelled: Path, tmp_path: Path
) -> None:
    """The logged accuracy is that of the exported EMA weights, image by image."""
    folder, out = tmp_path / "run", tmp_path / "classifier.safetensors"
    longer = ("trainer.max_steps=40", "trainer.validate_every_steps=40", "trainer.ema_decay=0.5")
    plain = ("mix.mixup=0", "mix.cutmix=0", "mix.group=16", "augment.rand_augment=null")
    result = classify(folder, *longer, *plain, "trainer.checkpoint_every_steps=40")
    consolidate(result.checkpoint, out)
    model = load_classifier(str(out))
    assert model.config.labels == CLASSES
    images = LabelledImages(open_shards(f"{labelled}/heldout/*.tar"), scoring_view(model.config), 3)
    read = [images.read(number) for number in range(len(images))]
    good = [image for image in read if isinstance(image, LabelledImage)]
    assert len(good) == 5
    with torch.no_grad():
        logits = model(torch.stack([image.image for image in good]))
    hits = [int(row.argmax()) == image.label for row, image in zip(logits, good, strict=True)]
    assert sum(hits) >= 4
    best = (folder / "best").read_text().strip()
    assert best == "checkpoints/step-00000040"
    metrics = logged(folder)
    assert metrics["heldout/top1"] == pytest.approx(sum(hits) / len(hits))
    assert metrics["heldout/top5"] == 1
    assert metrics["heldout/photos"] == len(good)


def test_exported_pt_file_has_maes_names_and_loads_back(classify: Run, tmp_path: Path) -> None:
    result = classify(tmp_path / "run", "trainer.max_steps=2")
    consolidate(result.checkpoint, tmp_path / "mae.pt")
    consolidate(result.checkpoint, tmp_path / "ours.safetensors")
    state = torch.load(tmp_path / "mae.pt")["model"]
    assert {"blocks.1.attn.qkv.weight", "pos_embed", "fc_norm.weight", "head.bias"} <= state.keys()
    ours = load_classifier(str(tmp_path / "ours.safetensors"))
    again = Classifier(ClassifierConfig(**vars(ours.config)))
    load_classifier_file(again, str(tmp_path / "mae.pt"))
    for name, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_pictures_show_held_out_images(classify: Run, tmp_path: Path) -> None:
    classify(tmp_path / "run", "trainer.visualized_images=3", "trainer.max_steps=2")
    assert (tmp_path / "run/pictures/step-00000002.png").is_file()


@pytest.fixture(scope="module")
def pair(labelled: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on two ranks in several ways, in one pair of processes."""
    home = tmp_path_factory.mktemp("pair")
    paths = (f"data.train={labelled}/train/*.tar", f"data.heldout={labelled}/heldout/*.tar")
    keys = (*paths, *ONE_STEP, *TWO, VALIDATED)
    run_pair(
        *(["classify", str(tiny), "-", f"run.dir={home}/{way}", *keys, *WAYS[way]] for way in WAYS)
    )
    return home


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_take_the_step_of_one_and_count_each_image_once(
    way: str, pair: Path, one: Path, classify: Run, tmp_path: Path
) -> None:
    assert_same_step(pair / way, one)
    classify(tmp_path / "single", *ONE_STEP, VALIDATED)
    measured, expected = logged(pair / way), logged(tmp_path / "single")
    assert measured["heldout/photos"] == 5
    for name in ("heldout/top1", "heldout/top5", "heldout/loss"):
        assert measured[name] == pytest.approx(expected[name], rel=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_run_of_two_ranks_resumes_on_one(
    way: str, pair: Path, classify: Run, tmp_path: Path
) -> None:
    classify(tmp_path, *ONE_STEP, f"run.resume={pair}/{way}/checkpoints/step-00000001")
    resumed, straight = (
        torch.cat([v.flatten() for _, v in sorted(checkpoint(at, 2)["state_dict"].items())])
        for at in (tmp_path, pair / way)
    )
    assert float((resumed - straight).norm() / straight.norm()) < 1e-4
