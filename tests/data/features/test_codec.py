import json
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from efficientsam_pl.data.features.codec import (
    VERSION,
    Rounding,
    decode_features,
    encode_features,
    read_map,
    storable,
)
from efficientsam_pl.data.schema import CorruptSampleError

BOTH = pytest.mark.parametrize("numbers", ["float16", "int8"])


def normal(*shape: int) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return drawn * torch.logspace(-2, 2, shape[-1])


def file_of(features: Tensor, numbers: Literal["float16", "int8"] = "float16") -> bytes:
    return encode_features(features[None], numbers).file(0)


def test_float16_file_holds_what_numpy_rounds_to(tmp_path: Path) -> None:
    features = normal(196, 16)
    (tmp_path / "x.safetensors").write_bytes(file_of(features))
    read = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(read["features"], features.numpy().astype(np.float16))
    assert read.keys() == {"features"}
    assert read_map(file_of(features), "x").numpy().tobytes() == read["features"].tobytes()


def test_int8_by_hand() -> None:
    """Channels of largest magnitudes 254, 127 and 0: steps of 2, 1 and none."""
    features = torch.tensor([[0.0, 1.4, 0.0], [90.9, -127.0, 0.0], [-254.0, 1.6, 0.0]])
    stored = encode_features(features[None], "int8")
    assert stored.scale is not None
    assert stored.scale[0].tolist() == [2.0, 1.0, 0.0]
    assert stored.values[0].tolist() == [[0, 1, 0], [45, -127, 0], [-127, 2, 0]]
    read = read_map(stored.file(0), "x")
    assert read.tolist() == [[0.0, 1.0, 0.0], [90.0, -127.0, 0.0], [-254.0, 2.0, 0.0]]
    assert read.dtype == torch.float16


def test_int8_is_off_by_half_a_step_of_its_channel_at_most() -> None:
    features = normal(4, 7, 9, 16)
    error = (decode_features(encode_features(features, "int8")).float() - features).abs()
    largest = features.abs().amax(dim=(1, 2), keepdim=True)
    assert (error <= largest / 254 + largest * 2**-11).all()


def test_int8_is_half_the_bytes() -> None:
    features = normal(196, 256)
    assert len(file_of(features, "int8")) < 0.52 * len(file_of(features))


@BOTH
def test_maps_of_a_batch_are_coded_as_if_alone(numbers: Literal["float16", "int8"]) -> None:
    features = normal(3, 5, 4, 8)
    together = encode_features(features, numbers)
    for number, feature_map in enumerate(features):
        assert together.file(number) == file_of(feature_map, numbers)
        assert read_map(together.file(number), "x", (5, 4, 8)).shape == (5, 4, 8)


@pytest.mark.parametrize(
    ("worst", "fits"),
    [
        (65504.0, True),
        (-65504.0, True),
        (65536.0, False),
        (-1e30, False),
        (float("nan"), False),
        (float("-inf"), False),
    ],
)
def test_what_float16_cannot_hold_is_reported(worst: float, fits: bool) -> None:
    features = torch.zeros(3, 4, 2)
    features[1, 2, 1] = worst
    assert storable(features).tolist() == [True, fits, True]


def test_measured_error_by_hand() -> None:
    """float16 holds 2048 and 2050 but not 2049, and 0.5 exactly."""
    rounding = Rounding()
    features = torch.tensor([[[2049.0, 0.5], [0.0, -2048.0]]])
    rounding.measure(features, encode_features(features, "float16"))
    assert rounding.squared_error == rounding.largest_error == 1
    whole = Rounding()
    for _ in range(3):
        whole.add(vars(rounding))
    assert whole.squared_error == 3
    assert whole.largest_error == 1
    assert whole.relative() == pytest.approx((1 / (2049**2 + 0.25 + 2048**2)) ** 0.5)


def test_error_of_int8_is_near_that_of_uniform_steps() -> None:
    """A uniform error over a step of s has the variance s^2 / 12."""
    rounding, features = Rounding(), torch.rand(8, 400, 6, generator=torch.manual_seed(0))
    rounding.measure(features, encode_features(features, "int8"))
    assert rounding.squared_error / features.numel() == pytest.approx(1 / 127**2 / 12, rel=0.1)
    assert Rounding().relative() == 0


def with_header(**changes: Any) -> bytes:
    data = file_of(normal(4, 2))
    size = struct.unpack("<Q", data[:8])[0]
    header = json.dumps(json.loads(data[8 : 8 + size]) | changes).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def tensors(**arrays: np.ndarray) -> bytes:
    data: bytes = safetensors.numpy.save(arrays, {"efficientsam_pl features": str(VERSION)})
    return data


HALF, SMALL = np.ones((4, 2), np.float16), np.ones((4, 2), np.int8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x"),
        (b"no features at all", "x"),
        (file_of(normal(4, 2))[:-1], "x"),
        (with_header(__metadata__={"efficientsam_pl features": "9"}), "version 9, .* reads 1"),
        (with_header(__metadata__={}), "efficientsam_pl features"),
        (with_header(__metadata__=7), "x"),
        (tensors(features=HALF.astype(np.float32)), "unknown numbers"),
        (tensors(other=HALF), "unknown numbers"),
        (tensors(features=HALF, more=HALF), "unknown numbers"),
        (tensors(features=SMALL), "unknown numbers"),
        (tensors(features=SMALL, scale=np.ones(3, np.float32)), r"scales of \[3\]"),
        (tensors(features=SMALL, scale=np.ones((1, 2), np.float32)), "unknown numbers"),
        (tensors(features=np.ones(4, np.float16)), r"features of \[4\]"),
        (tensors(features=np.ones((0, 4), np.float16)), r"features of \[0, 4\]"),
        (tensors(features=HALF * np.float16("nan")), "inf or nan"),
        (tensors(features=SMALL, scale=np.full(2, np.inf, np.float32)), "inf or nan"),
        (tensors(features=SMALL, scale=np.full(2, 1e30, np.float32)), "inf or nan"),
        (tensors(features=np.ones((4, 3), np.float16)), r"\[4, 3\] where \[4, 2\] is needed"),
        (tensors(features=np.ones((2, 2, 2), np.float16)), r"\[2, 2, 2\] where"),
    ],
    ids=range(19),
)
def test_what_is_no_map_is_an_error_that_names_the_file(data: bytes, message: str) -> None:
    with pytest.raises(CorruptSampleError, match=message) as caught:
        read_map(data, "x", (4, 2))
    assert caught.value.kind == "bad features"
    assert caught.value.detail.startswith("x: ")


def test_file_of_the_right_form_is_read() -> None:
    """So that the table above does not fail for its making alone."""
    assert read_map(with_header(), "x", (4, 2)).shape == (4, 2)
    assert read_map(tensors(features=HALF), "x", (4, 2)).tolist() == HALF.tolist()
    scaled = tensors(features=SMALL, scale=np.array([2, 3], np.float32))
    assert read_map(scaled, "x", (4, 2)).tolist() == [[2, 3]] * 4
