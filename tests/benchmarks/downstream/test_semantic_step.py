"""The semantic step of the benchmark is the trainer's, on images with the classes it states."""

import torch

from benchmarks.downstream.semantic import CLASSES, IMAGES, OurStep, label_maps
from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.semantic.config import MaskHeadConfig, SemanticConfig


def test_label_maps_have_their_classes() -> None:
    labels, present = label_maps(64, 150)
    assert len(labels) == len(present) == IMAGES
    for image, classes in zip(labels, present, strict=True):
        assert tuple(image.unique().tolist()) == classes
        assert len(classes) == CLASSES


def test_a_step_changes_the_weights_of_every_part() -> None:
    vit = EncoderConfig(width=24, depth=1, heads=3, image_size=64, position_grid=4)
    head = MaskHeadConfig(
        width=32, heads=2, queries=8, pixel_layers=1, pixel_ffn=8, layers=3, ffn=8
    )
    step = OurStep(SemanticConfig(vit=vit, head=head, feature_channels=8))
    model = step._stage.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step()
    still = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert not still
