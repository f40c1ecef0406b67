"""Gathers of a step under FSDP2, counted on a rank of two whose collectives move nothing."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.scaling.collectives import Collectives
from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.models.config import (
    EncoderConfig,
    MaskDecoderConfig,
    PromptEncoderConfig,
    SegmenterConfig,
)
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.prompts.config import PromptingConfig
from efficientsam_pl.prompts.samplers import build_prompt_sampler
from efficientsam_pl.recipes.promptable.module import PromptedSegmentation
from efficientsam_pl.recipes.promptable.prompt_loop import PromptLoop
from efficientsam_pl.structures import MaskBatch
from efficientsam_pl.training.config import TrainerConfig
from efficientsam_pl.training.parallelize import as_forward_of, parallelize

SIDE, BLOCKS, MASKS = 32, 2, 3
CONFIG = SegmenterConfig(
    encoder=EncoderConfig(
        width=12, depth=BLOCKS, heads=3, image_size=SIDE, position_grid=2, neck_channels=16
    ),
    prompts=PromptEncoderConfig(negative_clicks=True, mask_prompts=True, max_points=None),
    decoder=MaskDecoderConfig(depth=1, heads=2, mlp_width=16, iou_head_width=16),
)
FSDP = TrainerConfig(
    accelerator="cpu", devices=2, strategy="fsdp", precision="fp32", max_steps=9, micro_batch=4
)
UNITS = 1 + 1  # both blocks, which are small, and everything else


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",))
    dist.destroy_process_group()


def sharded(mesh: DeviceMesh, ema: bool = False, frozen: tuple[str, ...] = ()) -> Any:
    """A stage that prompts in four rounds, two masks of an image at a time."""
    model = Segmenter(CONFIG)
    model.freeze(frozen)
    prompting = PromptingConfig(rounds="interactive", corrections=2, repeats=1)
    prompt_loop = PromptLoop(build_prompt_sampler(prompting, SIDE), MaskLossConfig(), 2)
    stage: Any = PromptedSegmentation(
        model, prompt_loop, OptimConfig(), 9, partial(parallelize, config=FSDP), ema
    )
    stage._device_mesh = mesh  # as Lightning's strategy sets it
    stage.log = stage.log_dict = lambda *_, **__: None
    stage.configure_model()
    return stage


def batch() -> MaskBatch:
    draw = torch.Generator().manual_seed(0)
    return MaskBatch(
        image=torch.randint(256, (2, 3, SIDE, SIDE), generator=draw).to(torch.uint8),
        content_hw=torch.full((2, 2), SIDE),
        masks=torch.rand(2, MASKS, 8, 8, generator=draw) > 0.5,
        boxes_xyxy_px=torch.tensor([4.0, 4.0, 20.0, 20.0]).expand(2, MASKS, 4),
        clicks_px=SIDE * torch.rand(2, MASKS, 1, 2, generator=draw),
        valid=torch.ones(2, MASKS, dtype=torch.bool),
        sample_key=torch.arange(2),
        key=("a", "b"),
    )


def collectives(function: Callable[[], object]) -> Mapping[str, int]:
    with Collectives() as counter:
        function()
    return counter.seen().calls


def train(stage: Any) -> None:
    stage.train()
    stage.training_step(batch(), 0)["loss"].backward()


@torch.no_grad()
def validate(stage: Any) -> None:
    stage.eval()
    stage.validation_step(batch(), 0)


@pytest.mark.parametrize(("weights", "units"), [(0, BLOCKS + 1), (8_000_000, UNITS)])
@pytest.mark.parametrize("ema", [False, True])
def test_a_step_gathers_each_unit_twice_whatever_its_rounds(
    mesh: DeviceMesh, ema: bool, weights: int, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward; eight chunks of masks are decoded in between."""
    monkeypatch.setattr("efficientsam_pl.training.parallelize._UNIT_WEIGHTS", weights)
    stage = sharded(mesh, ema)
    for _ in range(2):
        expected = {"all_gather": 2 * units, "reduce_scatter": units}
        assert collectives(lambda: train(stage)) == expected
        assert collectives(lambda: validate(stage)) == {"all_gather": units}


def test_gradients_of_the_decoder_are_reduced_though_the_encoder_is_frozen(
    mesh: DeviceMesh,
) -> None:
    stage = sharded(mesh, frozen=("image_encoder",))
    assert collectives(lambda: train(stage))["reduce_scatter"] == 1
    assert all(p.grad is not None for p in stage.model.mask_decoder.parameters())


def test_a_callbacks_function_gathers_once_for_all_its_predictions(mesh: DeviceMesh) -> None:
    stage = sharded(mesh, ema=True)
    model, images = stage.eval_model(), batch()
    targets = stage.prompt_loop.prompt_sampler.targets(images)
    prompts = stage.prompt_loop.prompt_sampler.sample(targets, 0, None)

    @torch.no_grad()
    def predict_thrice() -> list[object]:
        features = model.encode(images.image, images.content_hw)
        return [model.decode(features, prompts) for _ in range(3)]

    assert collectives(as_forward_of(model, predict_thrice)) == {"all_gather": UNITS}
    assert collectives(lambda: train(stage)) == {"all_gather": 2 * UNITS, "reduce_scatter": UNITS}


def test_without_fsdp_a_function_stays_as_it_is() -> None:
    assert as_forward_of(Segmenter(CONFIG), batch) is batch


def test_parameter_names_stay_those_of_the_plain_model(mesh: DeviceMesh) -> None:
    plain = Segmenter(replace(CONFIG)).state_dict()
    assert sharded(mesh).model.state_dict().keys() == plain.keys()
