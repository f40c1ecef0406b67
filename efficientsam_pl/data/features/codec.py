"""Encode features for storage: float16, or int8 with a scale a channel, in safetensors' format.

A file holds one map: `features` [*place, c], for int8 also `scale` [c] float32 (a channel's
largest magnitude / 127), and its version in the header. Axes: b maps at once, c channels.
"""

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import safetensors.torch
import torch
from jaxtyping import Bool, Float, Float16, Float32, Shaped
from safetensors import SafetensorError
from torch import Tensor

from efficientsam_pl.data.schema import CorruptSampleError

Numbers = Literal["float16", "int8"]
VERSION = 1
# our only entry of the header: safetensors writes several in no fixed order
_VERSION_KEY = "efficientsam_pl features"
_LARGEST = torch.finfo(torch.float16).max
_STEPS = 127  # of int8 on either side of zero
_FORMS = ({"features": torch.float16}, {"features": torch.int8, "scale": torch.float32})
_KIND = "bad features"


@dataclass(frozen=True)
class EncodedFeatures:
    """Maps in the stored number format; `scale` is None for float16."""

    values: Shaped[Tensor, "b *place c"]
    scale: Float32[Tensor, "b c"] | None

    def cpu(self) -> "EncodedFeatures":
        """Return the maps in CPU memory."""
        return EncodedFeatures(self.values.cpu(), None if self.scale is None else self.scale.cpu())

    def file(self, number: int) -> bytes:
        """Serialize one of the maps."""
        tensors = {"features": self.values[number].contiguous()}
        if self.scale is not None:
            tensors["scale"] = self.scale[number].contiguous()
        data: bytes = safetensors.torch.save(tensors, {_VERSION_KEY: str(VERSION)})
        return data


def encode_features(features: Float[Tensor, "b *place c"], numbers: Numbers) -> EncodedFeatures:
    """Round maps to the stored number format; maps that are not `storable` get inf or nan."""
    exact = features.float()
    if numbers == "float16":
        return EncodedFeatures(exact.half(), None)
    places = exact.flatten(1, -2)
    scale = places.abs().amax(1) / _STEPS
    step = scale.reshape(len(exact), *[1] * (exact.ndim - 2), -1)
    # a channel of nothing but zeros has no step
    values = torch.where(step > 0, exact / step, 0).round().clamp(-_STEPS, _STEPS)
    return EncodedFeatures(values.to(torch.int8), scale)


def decode_features(stored: EncodedFeatures) -> Float16[Tensor, "b *place c"]:
    """Decode stored features to float16, as training reads them."""
    if stored.scale is None:
        return stored.values
    scale = stored.scale.reshape(len(stored.scale), *[1] * (stored.values.ndim - 2), -1)
    return (stored.values.float() * scale).half()


def storable(features: Float[Tensor, "b *place c"]) -> Bool[Tensor, "b"]:
    """Return for each map whether float16 can hold its numbers: none is nan or beyond 65504."""
    return (features.float().abs().flatten(1) <= _LARGEST).all(1)


def read_map(
    data: bytes | memoryview, name: str, shape: tuple[int, ...] | None = None
) -> Float16[Tensor, "*place c"]:
    """Read the map in a file.

    Args:
        data: Content of the file.
        name: Name of the file, for errors.
        shape: Required shape of the map; None: any.

    Raises:
        CorruptSampleError: It is no map, of another version or shape, or holds an inf or nan.
    """
    try:
        features = decode_features(_read(bytes(data)))[0]
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptSampleError(_KIND, f"{name}: {error!r}") from error
    if shape is not None and features.shape != shape:
        was = list(features.shape)
        raise CorruptSampleError(_KIND, f"{name}: a map of {was} where {list(shape)} is needed")
    # quicker than isfinite, and as sure: finite halves cannot add up to more than a float32 holds
    if not math.isfinite(float(features.sum(dtype=torch.float32))):
        raise CorruptSampleError(_KIND, f"{name}: a number is inf or nan")
    return features


@dataclass
class Rounding:
    """Error from rounding features to the stored number format, summed over maps."""

    squared_error: float = 0.0
    squared_features: float = 0.0
    largest_error: float = 0.0

    def measure(self, features: Float[Tensor, "b *place c"], stored: EncodedFeatures) -> None:
        """Add the difference between features and their stored values."""
        exact = features.double()
        error = decode_features(stored).double() - exact
        self.squared_error += float(error.square().sum())
        self.squared_features += float(exact.square().sum())
        self.largest_error = max(self.largest_error, float(error.abs().max()))

    def add(self, other: dict[str, Any]) -> None:
        """Add the fields of another record."""
        self.squared_error += other["squared_error"]
        self.squared_features += other["squared_features"]
        self.largest_error = max(self.largest_error, other["largest_error"])

    def relative(self) -> float:
        """Return the RMS error relative to the RMS feature; 0 where all features are zero."""
        if self.squared_features == 0:
            return 0.0
        return math.sqrt(self.squared_error / self.squared_features)


def _read(data: bytes) -> EncodedFeatures:
    """Parse a file; raise ValueError and others for anything but a map of this version."""
    size = int.from_bytes(data[:8], "little")
    version = json.loads(data[8 : 8 + size])["__metadata__"][_VERSION_KEY]
    if version != str(VERSION):
        raise ValueError(f"features of version {version}, this program reads {VERSION}")
    tensors = safetensors.torch.load(data)
    numbers = {name: tensor.dtype for name, tensor in tensors.items()}
    scale = tensors.get("scale")
    if numbers not in _FORMS or (scale is not None and scale.ndim != 1):
        raise ValueError(f"unknown numbers: {numbers}")
    values = tensors["features"]
    if values.ndim < 2 or not values.numel():
        raise ValueError(f"features of {list(values.shape)}")
    if scale is None:
        return EncodedFeatures(values[None], None)
    if scale.shape != values.shape[-1:]:
        raise ValueError(f"scales of {list(scale.shape)} for features of {list(values.shape)}")
    return EncodedFeatures(values[None], scale[None])
