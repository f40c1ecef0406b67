import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from efficientsam_pl.errors import UserError
from efficientsam_pl.models.released_names import released_names, rename_released
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.models.weights import (
    load_strictly,
    read_weights,
    safetensors_header,
    strip_prefix,
)
from efficientsam_pl.models.weights_source import WeightsError

CONFIG = {"resize": "pad", "encoder": {"width": 32}}
PROVENANCE = {"step": 7, "seed": 0}


def some_state() -> dict[str, Tensor]:
    return {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2)}


def one_line(error: pytest.ExceptionInfo[WeightsError]) -> str:
    assert isinstance(error.value, UserError)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_missing_left_over_and_misshapen_are_named() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(1, 1)})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {"a.weight": torch.ones(2, 4), "a.bias": torch.ones(2), "c.bias": torch.ones(1)}
    with pytest.raises(WeightsError) as error:
        load_strictly(model, state, "file.pt")
    assert one_line(error) == (
        "file.pt holds weights of another model; missing: b.bias, b.weight; "
        "unexpected: c.bias; of another shape: a.weight [2, 4] for [2, 3]"
    )
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_long_list_of_names_is_cut() -> None:
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(10)))
    with pytest.raises(WeightsError, match=r"missing: 0\.bias.*and 14 more$"):
        load_strictly(model, {}, "file.pt")


def test_a_fitting_state_is_copied() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 2)})
    load_strictly(model, some_state(), "file.pt")
    assert torch.equal(model["a"].weight, some_state()["a.weight"])


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as error:
        read_weights(str(tmp_path / "nothing.pt"))
    assert one_line(error) == f"weights: no such file: {tmp_path / 'nothing.pt'}"


@pytest.mark.parametrize("content", [b"not weights at all", b"\x80\x02garbage", b"PK\x03\x04"])
def test_garbage_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint") as error:
        read_weights(str(path))
    assert str(path) in one_line(error)


@pytest.mark.parametrize("content", [b"not weights at all", b"\xff" * 64])
def test_garbage_is_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="is not a safetensors file") as error:
        read_weights(str(path))
    assert str(path) in one_line(error)


@pytest.mark.parametrize("content", [[torch.ones(1)], {"epoch": 3, "a": torch.ones(1)}])
def test_a_checkpoint_without_a_state_dict(tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(WeightsError, match="holds no state dict of tensors"):
        read_weights(str(path))


class Boom:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("a pickle ran code",)


def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "boom.pt"
    torch.save({"a": Boom()}, path)
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint") as error:
        read_weights(str(path))
    one_line(error)
    assert "a pickle ran code" not in capsys.readouterr().out


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_of_ours_comes_back_unchanged(tmp_path: Path, wrapped: bool) -> None:
    path = tmp_path / "ours.pt"
    torch.save({"model": some_state()} if wrapped else some_state(), path)
    actual = read_weights(str(path))
    assert actual.config is None
    assert actual.state.keys() == some_state().keys()
    assert all(torch.equal(actual.state[name], t) for name, t in some_state().items())


def zipped(folder: Path, *names: str) -> str:
    path = folder / "weights.zip"
    torch.save(some_state(), folder / "inside.pt")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README.txt", "weights")
        for name in names:
            archive.write(folder / "inside.pt", name)
    return str(path)


def test_one_file_in_a_zip_is_read(tmp_path: Path) -> None:
    actual = read_weights(zipped(tmp_path, "folder/inside.pth")).state
    assert torch.equal(actual["a.weight"], some_state()["a.weight"])


@pytest.mark.parametrize("names", [(), ("one.pt", "two.pt")])
def test_a_zip_holds_exactly_one_checkpoint(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(WeightsError) as error:
        read_weights(zipped(tmp_path, *names))
    assert f"holds {len(names)} .pt files, expected one" in one_line(error)


def test_our_file_comes_back_with_its_header(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    save_file(some_state(), path, safetensors_header(CONFIG, PROVENANCE))
    actual = read_weights(str(path))
    assert (actual.config, actual.provenance) == (CONFIG, PROVENANCE)
    assert actual.state.keys() == some_state().keys()
    assert all(torch.equal(actual.state[name], t) for name, t in some_state().items())


def test_another_format_version_names_both(tmp_path: Path) -> None:
    path = tmp_path / "future.safetensors"
    header = safetensors_header(CONFIG, PROVENANCE) | {"format_version": "99"}
    save_file(some_state(), path, header)
    with pytest.raises(WeightsError, match="format version 99, this program reads version 1"):
        read_weights(str(path))


def test_a_safetensors_file_of_others_is_read_as_a_release(tmp_path: Path) -> None:
    path = tmp_path / "converted.safetensors"
    save_file(
        {
            "prompt_encoder.not_a_point_embed.weight": torch.ones(1, 4),
            "image_encoder.blocks.0.mlp.lin1.bias": torch.zeros(2),
        },
        path,
    )
    actual = read_weights(str(path))
    assert actual.config is None
    assert set(actual.state) == {
        "prompt_encoder.label_vectors.padding.weight",
        "image_encoder.trunk.blocks.0.mlp.fc1.bias",
    }


def test_a_model_survives_our_file(tmp_path: Path, tiny: Segmenter) -> None:
    path = tmp_path / "tiny.safetensors"
    save_file(tiny.state_dict(), path, safetensors_header({}, {}))
    other = Segmenter(tiny.config)
    load_strictly(other, read_weights(str(path)).state, str(path))
    ours, theirs = tiny.state_dict(), other.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_a_part_is_what_lies_below_its_prefix() -> None:
    state = {"image_encoder.neck.0.weight": torch.ones(1), "mask_decoder.bias": torch.zeros(1)}
    assert list(strip_prefix(state, "image_encoder.")) == ["neck.0.weight"]


@pytest.mark.parametrize("name", ["efficient_sam_ti", "efficient_sam_s"])
def test_released_names_come_back(
    name: str, released_shapes: Callable[[str], dict[str, list[int]]]
) -> None:
    released = {key: torch.empty(0) for key in released_shapes(name)}
    ours = rename_released(released)
    assert ours.keys() != released.keys()
    assert released_names(ours).keys() == released.keys()
