"""Models put together from files: what they begin with, and which files are refused."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from efficientsam_pl.inference.load import load_segmenter, starting_segmenter
from efficientsam_pl.models.config import NAMED, EncoderConfig, ModelConfig, SegmenterConfig
from efficientsam_pl.models.registry import segmenter_config
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.models.weights import safetensors_header
from efficientsam_pl.models.weights_source import WeightsError
from efficientsam_pl.structures import Label, Prompts

ENCODER = EncoderConfig(
    width=32, depth=2, heads=2, image_size=64, position_grid=4, neck_channels=32
)


def small(name: str, encoder: EncoderConfig = ENCODER) -> SegmenterConfig:
    """A named layout in small; SAM's with the plain encoder."""
    named = segmenter_config(name)
    return replace(named, encoder=encoder, decoder=replace(named.decoder, mlp_width=64))


def random_model(config: SegmenterConfig, seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    model = Segmenter(config).eval()
    for parameter in model.parameters():  # zeros would hide what is left out
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def saved(model: Segmenter, path: Path) -> str:
    """As `consolidate` writes it."""
    save_file(model.state_dict(), path, safetensors_header(asdict(model.config), {}))
    return str(path)


def known_prompts() -> list[Prompts]:
    """Boxes, one to six clicks, a box and four clicks: all that the released layout takes."""
    generator = torch.Generator().manual_seed(1)
    boxes = torch.tensor([[[4.0, 8, 40, 60], [20, 20, 24, 50]]])
    clicks = [torch.rand(1, 2, n, 2, generator=generator) * 64 for n in (1, 3, 6, 4)]
    both = replace(Prompts.of_clicks(clicks[3]), boxes_xyxy_px=boxes)
    return [Prompts.of_boxes(boxes), *(Prompts.of_clicks(points) for points in clicks[:3]), both]


@pytest.mark.parametrize("drawn", [False, True])
def test_a_model_that_knows_more_prompts_begins_as_the_one_that_knows_fewer(
    tmp_path: Path, drawn: bool
) -> None:
    released = random_model(small("efficient_sam_ti"))
    path = saved(released, tmp_path / "released.safetensors")
    config = small("efficient_sam_ti_interactive")
    config = replace(config, prompts=replace(config.prompts, drawn_prompts=drawn))
    model = starting_segmenter(config, ModelConfig(weights=path)).eval()
    features = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        for prompts in known_prompts():
            expected = released.decode(features, prompts)
            assert drawn or torch.equal(
                model.decode(features, prompts).low_res_logits, expected.low_res_logits
            )
            with_mask = replace(prompts, mask_logits=torch.randn(1, 2, 16, 16))
            for variant in (prompts, with_mask):  # with a map of zeros sums run in another order
                actual = model.decode(features, variant)
                torch.testing.assert_close(
                    actual.low_res_logits, expected.low_res_logits, rtol=1e-4, atol=1e-5
                )
                torch.testing.assert_close(actual.iou, expected.iou, rtol=1e-4, atol=1e-5)
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(model.encode(image), released.encode(image), rtol=0, atol=0)


def test_what_was_added_learns_from_the_first_step(tmp_path: Path) -> None:
    path = saved(random_model(small("efficient_sam_ti")), tmp_path / "released.safetensors")
    model = starting_segmenter(small("efficient_sam_ti_interactive"), ModelConfig(weights=path))
    encoder = model.prompt_encoder
    vectors = encoder.label_vectors
    assert torch.equal(vectors["negative"].weight, vectors["padding"].weight)
    labels = torch.tensor([[[Label.POSITIVE, Label.NEGATIVE]]])
    prompts = Prompts(torch.rand(1, 1, 2, 2) * 64, labels)
    features = torch.randn(1, 32, 4, 4)
    variants = (prompts, replace(prompts, mask_logits=torch.randn(1, 1, 16, 16)))
    sum(
        model.decode(features, variant).low_res_logits.square().mean() for variant in variants
    ).backward()
    added = [vectors["negative"].weight, encoder.no_mask_embed.weight]
    added += list(encoder.mask_downscaling[-1].parameters())
    assert all(parameter.grad.any() for parameter in added)


def test_loading_for_use_adds_nothing(tmp_path: Path) -> None:
    path = saved(random_model(small("efficient_sam_ti")), tmp_path / "released.safetensors")
    with pytest.raises(WeightsError, match=r"missing: prompt_encoder\.label_vectors\.negative"):
        load_segmenter(small("efficient_sam_ti_interactive"), path)


def test_a_model_that_has_grown_survives_our_file(tmp_path: Path) -> None:
    config = small("efficient_sam_ti_interactive")
    model = random_model(config)
    path = saved(model, tmp_path / "grown.safetensors")
    for other in (
        load_segmenter(config, path),
        starting_segmenter(config, ModelConfig(weights=path)),
    ):
        ours, theirs = model.state_dict(), other.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def sam_decoder_in_released_names(shared: Path) -> dict[str, Tensor]:
    """Seeded weights of SAM's prompt encoder and mask decoder, named and shaped as released."""
    keys = json.loads((shared / "golden" / "sam_vit_b.keys.json").read_text())
    draw = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=draw)
        for name, shape in keys.items()
        if not name.startswith("image_encoder.")
    }


@pytest.mark.parametrize(
    ("name", "encoder"),
    [("models/ti_sam_decoder", "efficient_sam_ti"), ("models/s_sam_decoder", "efficient_sam_s")],
)
def test_sams_prompt_encoder_and_decoder_are_taken_from_its_file(
    name: str, encoder: str, shared: Path, tmp_path: Path
) -> None:
    released = sam_decoder_in_released_names(shared)
    torch.save(released, tmp_path / "sam.pth")
    config = segmenter_config(name)
    assert config.encoder == NAMED[encoder].encoder
    torch.manual_seed(0)
    model = starting_segmenter(config, ModelConfig(decoder=str(tmp_path / "sam.pth")))
    state = model.state_dict()
    pairs = {
        "prompt_encoder.label_vectors.negative.weight": "prompt_encoder.point_embeddings.0.weight",
        "prompt_encoder.label_vectors.padding.weight": "prompt_encoder.not_a_point_embed.weight",
        "prompt_encoder.mask_downscaling.6.bias": "prompt_encoder.mask_downscaling.6.bias",
        "mask_decoder.upscaling.3.weight": "mask_decoder.output_upscaling.3.weight",
        "mask_decoder.iou_head.4.bias": "mask_decoder.iou_prediction_head.layers.2.bias",
        "mask_decoder.transformer.layers.1.mlp.fc2.bias": (
            "mask_decoder.transformer.layers.1.mlp.lin2.bias"
        ),
    }
    for ours, theirs in pairs.items():
        assert torch.equal(state[ours], released[theirs])
    taken = [n for n in state if not n.startswith("image_encoder.")]
    assert len(taken) == len(released)
    torch.manual_seed(0)
    fresh = Segmenter(config).state_dict()
    assert all(torch.equal(state[n], fresh[n]) for n in state if n.startswith("image_encoder."))


def test_encoder_and_decoder_come_from_two_files(tmp_path: Path) -> None:
    """The encoder's neck is loaded if the file has one."""
    config = small("efficient_sam_ti_interactive")
    first_model, second_model = random_model(small("efficient_sam_ti"), 1), random_model(config, 2)
    encoder = saved(first_model, tmp_path / "one.safetensors")
    decoder = saved(second_model, tmp_path / "other.safetensors")
    state = starting_segmenter(config, ModelConfig(encoder=encoder, decoder=decoder)).state_dict()
    first, second = first_model.state_dict(), second_model.state_dict()
    for name, tensor in state.items():
        source = first if name.startswith("image_encoder.") else second
        assert torch.equal(tensor, source[name])


def test_a_pretrained_trunk_leaves_the_neck_fresh(tmp_path: Path) -> None:
    config = small("efficient_sam_ti")
    model = random_model(config, 1)
    trunk = {n: t for n, t in model.state_dict().items() if n.startswith("image_encoder.trunk.")}
    path = tmp_path / "encoder.safetensors"
    save_file(trunk, path, safetensors_header({"student": {}, "decoder": "cross_attention"}, {}))
    torch.manual_seed(7)
    state = starting_segmenter(config, ModelConfig(encoder=str(path))).state_dict()
    torch.manual_seed(7)
    fresh = Segmenter(config).state_dict()
    for name, tensor in state.items():
        assert torch.equal(tensor, trunk.get(name, fresh[name]))
    with pytest.raises(WeightsError, match="holds no prompt encoder and mask decoder") as error:
        starting_segmenter(config, ModelConfig(decoder=str(path)))
    assert str(path) in str(error.value)


def refused(load: Callable[[], Segmenter], *parts: str) -> None:
    with pytest.raises(WeightsError) as error:
        load()
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("key", ["weights", "decoder"])
def test_a_decoder_that_computes_otherwise_is_refused(key: str, tmp_path: Path) -> None:
    """Its shapes fit: without this check it would predict nonsense."""
    path = saved(random_model(small("models/ti_sam_decoder")), tmp_path / "sam.safetensors")
    config = small("efficient_sam_ti_interactive")
    differs = ("decoder.activation=relu for gelu", "prompts.padding_position=zeroed for kept")
    refused(lambda: starting_segmenter(config, ModelConfig(**{key: path})), path, *differs)
    refused(lambda: load_segmenter(config, path), path, *differs)


def test_a_released_sam_is_no_start_for_the_papers_decoder(shared: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "sam.pth")
    torch.save(sam_decoder_in_released_names(shared), path)
    config = NAMED["efficient_sam_ti_interactive"]
    start = ModelConfig(decoder=path)
    refused(lambda: starting_segmenter(config, start), path, "upscaling_norm=layer_norm")


@pytest.mark.parametrize("key", ["weights", "encoder"])
def test_a_model_of_another_size_is_refused(key: str, tmp_path: Path) -> None:
    larger = small("efficient_sam_ti", replace(ENCODER, width=48))
    path = saved(random_model(larger), tmp_path / "larger.safetensors")
    start = ModelConfig(**{key: path})
    refused(
        lambda: starting_segmenter(small("efficient_sam_ti"), start),
        path,
        "of another shape",
        "[48] for [32]",
    )


def test_a_decoder_of_other_channels_is_refused(tmp_path: Path) -> None:
    wider = small("efficient_sam_ti", replace(ENCODER, neck_channels=64))
    path = saved(random_model(wider), tmp_path / "wider.safetensors")
    config = small("efficient_sam_ti")
    refused(
        lambda: starting_segmenter(config, ModelConfig(decoder=path)), path, "[1, 64] for [1, 32]"
    )


def test_a_file_without_an_encoder_is_refused(shared: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "sam.pth")
    torch.save(sam_decoder_in_released_names(shared), path)
    start = ModelConfig(encoder=path)
    refused(lambda: starting_segmenter(small("efficient_sam_ti"), start), path, "no image encoder")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"heads": 4}, "encoder.heads=2 for 4"),
        ({"global_attention": "listed", "global_blocks": (1,)}, "encoder.global_attention=all"),
    ],
)
def test_what_no_shape_tells_is_compared(
    tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    config = small("efficient_sam_ti")
    path = saved(random_model(config), tmp_path / "model.safetensors")
    other = replace(config, encoder=replace(config.encoder, **change))
    with pytest.raises(WeightsError, match=expected):
        load_segmenter(other, path)
    with pytest.raises(WeightsError, match="resize=squash for pad"):
        load_segmenter(replace(config, resize="pad"), path)


def test_other_windows_are_refused_and_may_be_begun_with(tmp_path: Path) -> None:
    windowed = replace(ENCODER, global_attention="listed", global_blocks=(1,), window=2)
    config = small("efficient_sam_ti", windowed)
    path = saved(random_model(config), tmp_path / "model.safetensors")
    load_segmenter(config, path)
    wider = replace(config, encoder=replace(windowed, window=3))
    with pytest.raises(WeightsError, match=r"encoder\.window=2 for 3"):
        load_segmenter(wider, path)
    starting_segmenter(wider, ModelConfig(weights=path))
    heads = replace(config, encoder=replace(windowed, heads=4))
    for start in (ModelConfig(weights=path), ModelConfig(encoder=path)):
        with pytest.raises(WeightsError, match=r"encoder\.heads=2 for 4"):
            starting_segmenter(heads, start)
