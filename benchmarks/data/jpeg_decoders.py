"""Throughput of JPEG decoders on three kinds of images, one core.

A part of benchmarks.data. Decoders that are not installed have no row.
"""

import importlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.data.inputs import Inputs
from benchmarks.harness import Row, alternate
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import IMAGE_SUFFIXES
from efficientsam_pl.data.shards import open_shards

Decoder = Callable[[bytes], object]


def decoder_rows(inputs: Inputs, rounds: int) -> list[Row]:
    """Measure every decoder against Pillow: whole images, and SA-1B's at half their size."""
    packed = SampleReader([open_shards(inputs.packed)], IMAGE_SUFFIXES).read(
        [SampleRef(0, i) for i in range(len(inputs.images))]
    )
    sets = {
        "sa1b": [image.read_bytes() for image in inputs.images],
        "packed": [bytes(read.files["jpg"]) for read in packed if read is not None],
        "imagenet": [image.read_bytes() for image in inputs.imagenet_images],
    }
    rows = [
        row for name, jpegs in sets.items() for row in _rows(name, jpegs, whole_image(), rounds)
    ]
    return [*rows, *_rows("sa1b_half", sets["sa1b"], half_image(), rounds)]


def whole_image() -> dict[str, Decoder]:
    """Return the decoders to RGB at full size."""
    decoders: dict[str, Decoder] = {"pillow": _pillow, "simplejpeg": simplejpeg.decode_jpeg}
    if importlib.util.find_spec("cv2"):
        decoders["opencv"] = _opencv("IMREAD_COLOR")
    decoders["torchvision"] = _torchvision()
    return decoders


def half_image() -> dict[str, Decoder]:
    """Return the decoders that scale in the DCT, to half."""
    decoders: dict[str, Decoder] = {"pillow": _pillow_half, "simplejpeg": _simplejpeg_half}
    if importlib.util.find_spec("cv2"):
        decoders["opencv"] = _opencv("IMREAD_REDUCED_COLOR_2")
    return decoders


def _rows(
    name: str, jpegs: Sequence[bytes], decoders: dict[str, Decoder], rounds: int
) -> list[Row]:
    def all_by(decoder: Decoder) -> Callable[[], object]:
        return lambda: [decoder(jpeg) for jpeg in jpegs]

    taken = alternate({key: all_by(decoder) for key, decoder in decoders.items()}, rounds)
    return [
        Row(
            id=f"data.decode_{name}.{key}",
            work=f"{name}: JPEG to RGB by {key}; reference: Pillow",
            value=len(jpegs) / taken[key].wall,
            unit="images/s",
            reference=len(jpegs) / taken["pillow"].wall,
            better="higher",
        )
        for key in decoders
        if key != "pillow"
    ]


def _pillow(jpeg: bytes) -> object:
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.array(image.convert("RGB"))


def _pillow_half(jpeg: bytes) -> object:
    with Image.open(io.BytesIO(jpeg)) as image:
        image.draft("RGB", (image.width // 2, image.height // 2))
        return np.array(image.convert("RGB"))


def _simplejpeg_half(jpeg: bytes) -> object:
    height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    return simplejpeg.decode_jpeg(
        jpeg, min_height=-(-height // 2), min_width=-(-width // 2), min_factor=2
    )


def _opencv(flag: str) -> Decoder:
    cv2: Any = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    return lambda jpeg: cv2.cvtColor(
        cv2.imdecode(np.frombuffer(jpeg, np.uint8), getattr(cv2, flag)), cv2.COLOR_BGR2RGB
    )


def _torchvision() -> Decoder:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(jpeg: bytes) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated since 0.29
            data = torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)
            return decode_jpeg(data, mode=ImageReadMode.RGB)

    return decode
