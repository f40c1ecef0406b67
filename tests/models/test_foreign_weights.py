"""Weights files as other programs write them, and files that are no weights."""

import argparse
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from efficientsam_pl.export.consolidate import write_safetensors
from efficientsam_pl.inference.hub import load_model, weights_sha256
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.models.weights import load_strictly, read_weights, safetensors_header
from efficientsam_pl.models.weights_source import WeightsError
from tests.models.weights_files import is_state, refusal, saved, state


def renamed(rename: Callable[[str], str]) -> dict[str, Tensor]:
    return {rename(name): tensor for name, tensor in state().items()}


NESTINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda s: s,
    "ordered": OrderedDict,
    "parameters": lambda s: {name: nn.Parameter(tensor) for name, tensor in s.items()},
    "released": lambda s: {"model": s},
    "DeiT": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}},
    "MAE": lambda s: {"model": s, "epoch": 3, "args": argparse.Namespace(lr=0.1, betas=(0.9, 1))},
    "Lightning": lambda s: {
        "state_dict": {f"model.{name}": tensor for name, tensor in s.items()},
        "hyper_parameters": {"lr": 0.1},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(1)}}}],
        "loops": {"fit_loop": {"state_dict": {}}},
    },
    "model_state_dict": lambda s: {"model_state_dict": s, "rng": {"cpu": torch.ones(1)}},
    "an EMA in a record": lambda s: {"ema": {"module": s, "updates": 7}, "epoch": 1},
    "a key of its own": lambda s: {"segmenter": s, "epoch": 1},
    "two levels": lambda s: {"state_dict": {"model": s}},
}


@pytest.mark.parametrize("nesting", NESTINGS.values(), ids=NESTINGS)
def test_the_only_state_dict_of_a_file_is_taken(
    tmp_path: Path, nesting: Callable[[dict[str, Tensor]], Any]
) -> None:
    assert is_state(read_weights(saved(tmp_path, nesting(state()))).state)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"model.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.model.{name}",
        lambda name: f"model.net.{name}",
        lambda name: name.replace("blocks.0.", "blocks.0._orig_mod."),
        lambda name: name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."),
        lambda name: f"model.{name}".replace("attn", "_checkpoint_wrapped_module.attn"),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_prefixes_of_wrappers_are_stripped(
    tmp_path: Path, rename: Callable[[str], str], suffix: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "pt":
        torch.save(renamed(rename), path)
    else:
        save_file(renamed(rename), path, {"format": "pt"})
    assert is_state(read_weights(path).state)


def test_a_wrapped_release_is_recognized(tmp_path: Path) -> None:
    names = ["prompt_encoder.not_a_point_embed.weight", "image_encoder.blocks.0.mlp.lin1.bias"]
    path = saved(tmp_path, {"state_dict": {f"model.{name}": torch.ones(2) for name in names}})
    actual = read_weights(path)
    assert actual.layout == "SAM"
    assert "image_encoder.trunk.blocks.0.mlp.fc1.bias" in actual.state


def test_torchs_averaged_model_is_read(tmp_path: Path) -> None:
    model = nn.ModuleDict({"neck": nn.Linear(2, 2)})
    ema = torch.optim.swa_utils.AveragedModel(model)
    actual = read_weights(saved(tmp_path, ema.state_dict())).state
    load_strictly(model, actual, "x.pt")


def test_a_prefix_that_only_some_names_have_stays_and_is_named(tmp_path: Path) -> None:
    names = renamed(lambda name: f"model.{name}") | {"loss.weight": torch.ones(1)}
    actual = read_weights(saved(tmp_path, {"state_dict": names})).state
    with pytest.raises(WeightsError, match=r"its names begin with model\. \(2\), loss\. \(1\)$"):
        load_strictly(nn.ModuleDict({"neck": nn.Linear(2, 2)}), actual, "x.pt")


def test_names_that_meet_without_their_wrapper_are_refused(tmp_path: Path) -> None:
    both = state() | {"neck._orig_mod.bias": torch.zeros(2)}
    assert "two tensors that are called neck.bias" in refusal(saved(tmp_path, both))


@pytest.mark.parametrize("keys", [("model", "model_ema"), ("student", "teacher"), ("a", "b")])
def test_two_models_in_a_file_are_named(tmp_path: Path, keys: tuple[str, str]) -> None:
    path = saved(tmp_path, {key: state() for key in keys} | {"epoch": 1})
    assert f"holds several state dicts ({keys[0]}, {keys[1]}); save one" in refusal(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "optimizer": {"state": {}}}, "(its keys: epoch, optimizer)"),
        ({}, "(its keys: none)"),
        ([torch.ones(1)], "but a list"),
        (torch.ones(2), "but a Tensor"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(
    tmp_path: Path, content: object, message: str
) -> None:
    assert message in refusal(saved(tmp_path, content))


def test_a_pickled_model_is_refused_by_its_class(tmp_path: Path) -> None:
    message = refusal(saved(tmp_path, nn.Linear(2, 2)))
    assert "it holds torch.nn.modules.linear.Linear, which is not loaded for safety" in message


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    assert "it is a TorchScript program" in refusal(tmp_path / "x.pt")


# metadata


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"config": "{}"}])
def test_a_safetensors_file_without_our_metadata_is_read(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    save_file(state(), tmp_path / "x.safetensors", metadata)
    actual = read_weights(tmp_path / "x.safetensors")
    assert is_state(actual.state)
    assert actual.config is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": None}, "has format version None, this program reads version 1"),
        ({"config": None}, "'config' is missing in the metadata"),
        ({"provenance": None}, "'provenance' is missing in the metadata"),
        ({"config": "{"}, "'config' cannot be read in the metadata"),
        ({"config": "[1]"}, "'config' cannot be read in the metadata"),
    ],
)
def test_incomplete_metadata_of_ours_are_named(
    tmp_path: Path, change: dict[str, str | None], message: str
) -> None:
    header = safetensors_header({}, {}) | change
    kept = {key: value for key, value in header.items() if value is not None}
    save_file(state(), tmp_path / "x.safetensors", kept)
    assert message in refusal(tmp_path / "x.safetensors")


def test_a_config_in_the_metadata_that_is_wrong_names_file_and_key(
    tmp_path: Path, tiny: Segmenter
) -> None:
    header = safetensors_header(asdict(tiny.config) | {"encoder": {"width": "x"}}, {})
    save_file(tiny.state_dict(), tmp_path / "x.safetensors", header)
    with pytest.raises(ValueError, match=r"x\.safetensors: the model's config.*encoder\.width"):
        load_model(weights=tmp_path / "x.safetensors")


# models


@pytest.fixture
def tiny_file(tmp_path: Path, tiny: Segmenter) -> Path:
    path, tensors = tmp_path / "tiny.safetensors", tiny.state_dict()
    write_safetensors(path, tensors, tensors.values(), asdict(tiny.config), {})
    return path


def test_a_path_is_as_good_as_its_text(tiny: Segmenter, tiny_file: Path) -> None:
    for weights in (tiny_file, str(tiny_file)):
        loaded = load_model(weights=weights).state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in tiny.state_dict().items())
    assert weights_sha256(tiny_file) == weights_sha256(str(tiny_file))


def test_the_hash_of_a_replaced_file_is_another(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"1")
    before = weights_sha256(path)
    path.write_bytes(b"22")
    assert weights_sha256(path) != before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_into_float32(
    tmp_path: Path, tiny: Segmenter, dtype: torch.dtype
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in tiny.state_dict().items()}
    path = tmp_path / "x.safetensors"
    write_safetensors(path, tensors, tensors.values(), asdict(tiny.config), {})
    for name, tensor in load_model(weights=path).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensors[name].float())


def test_integers_are_no_weights() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 2)})
    wrong = {"a.weight": torch.ones(2, 3, dtype=torch.int8), "a.bias": torch.ones(2)}
    with pytest.raises(WeightsError, match=r"of another type: a\.weight int8 for float32$"):
        load_strictly(model, wrong, "x.pt")
