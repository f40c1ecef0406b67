"""Maps and ground truth as other programs write them: grey, labels, palettes, alpha, arrays."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import UInt8
from PIL import Image

from efficientsam_pl.commands.salient.maps import Truth, is_faint, read_map, read_truth
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.metrics.saliency import saliency_scores

HW = (12, 16)
MASK = np.zeros(HW, dtype=bool)
MASK[3:9, 4:12] = True
TWO = MASK.astype(np.uint8)  # two objects, labels 1 and 2
TWO[6:9, 4:12] = 2
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, *[0] * 12, 128, 128, 128]  # its labels 0, 1, 2 and 7
VOC_VOID = [*VOC, *[0] * (3 * 247), 224, 224, 192]  # and 255


def grey(value: int, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.where(MASK, value, 0).astype(dtype))


def coloured(*colours: tuple[int, ...], labels: UInt8[np.ndarray, "h w"] = TWO) -> Image.Image:
    return Image.fromarray(np.array(colours, dtype=np.uint8)[labels])


def palette(colours: list[int], labels: UInt8[np.ndarray, "h w"] = TWO) -> Image.Image:
    image = Image.fromarray(labels)
    image.putpalette(colours)
    return image


def alpha(rgb: Image.Image, mask: Image.Image) -> Image.Image:
    rgb.putalpha(mask)
    return rgb


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8))


def truth_of(image: Image.Image, folder: Path, name: str = "x.png", **options: object) -> Truth:
    image.save(folder / name, **options)  # type: ignore[arg-type]
    return read_truth(folder / name, HW)


PLAIN: dict[str, Callable[[], Image.Image]] = {
    "0 and 255": lambda: grey(255),
    "one bit": lambda: grey(255).convert("1"),
    "0 and 200": lambda: grey(200),
    "16 bits": lambda: grey(65535, np.uint16),
    "10 and 240": lambda: Image.fromarray(np.where(MASK, 240, 10).astype(np.uint8)),
    "RGB": lambda: grey(255).convert("RGB"),
    "RGB, nearly grey": lambda: coloured((0, 2, 0), (255, 250, 255), (255, 255, 251)),
    "CMYK": lambda: grey(255).convert("RGB").convert("CMYK"),
    "opaque RGBA": lambda: grey(255).convert("RGBA"),
    "opaque LA": lambda: grey(255).convert("LA"),
    "white with a mask in alpha": lambda: alpha(Image.new("RGB", HW[::-1], "white"), grey(255)),
    "black with a mask in alpha": lambda: alpha(Image.new("L", HW[::-1], 0), grey(255)),
    "the same mask in colour and alpha": lambda: alpha(grey(255).convert("RGB"), grey(255)),
    "a red mask, also in alpha": lambda: alpha(
        coloured((0, 0, 0), (255, 0, 0), (255, 0, 0)), grey(255)
    ),
    "a grey palette whose first colour is white": lambda: palette(
        [255] * 3 + [0] * 3, (~MASK).astype(np.uint8)
    ),
}
LABELS: dict[str, Callable[[], Image.Image]] = {
    "0 and 1": lambda: grey(1),
    "0 and 100": lambda: grey(100),
    "0 and 1 in 16 bits": lambda: grey(1, np.uint16),
    "0, 1, 2": lambda: Image.fromarray(TWO),
    "VOC's palette": lambda: palette(VOC),
    "a palette without black": lambda: palette([0, 0, 255, 255, 255, 0, 255, 0, 0]),
    "a palette of one colour": lambda: palette([0] * 9),
    "label 7 of VOC, which is grey": lambda: palette(VOC, np.where(MASK, 7, 0).astype(np.uint8)),
    "two colours on black": lambda: coloured((0, 0, 0), (128, 0, 0), (0, 128, 0)),
    "a red mask": lambda: coloured((0, 0, 0), (255, 0, 0), (255, 0, 0)),
    "0 and 1 in RGB": lambda: grey(1).convert("RGB"),
}


@pytest.mark.parametrize("image", PLAIN.values(), ids=PLAIN)
def test_a_mask_is_read_however_it_is_stored(
    tmp_path: Path, image: Callable[[], Image.Image]
) -> None:
    picture = image()
    truth = truth_of(picture, tmp_path, "x.tif" if picture.mode == "CMYK" else "x.png")
    np.testing.assert_array_equal(truth.mask, MASK)
    assert not truth.from_labels


@pytest.mark.parametrize("image", LABELS.values(), ids=LABELS)
def test_all_labels_but_0_are_foreground(tmp_path: Path, image: Callable[[], Image.Image]) -> None:
    truth = truth_of(image(), tmp_path)
    np.testing.assert_array_equal(truth.mask, MASK)
    assert truth.from_labels
    assert saliency_scores(MASK.astype(float), truth.mask).f_max == 1.0


@pytest.mark.parametrize("dtype", [np.bool_, np.int64, np.int32, np.uint8, np.float32, np.float64])
def test_arrays_of_0_and_1_are_masks(tmp_path: Path, dtype: type) -> None:
    np.save(tmp_path / "x.npy", MASK.astype(dtype))
    np.testing.assert_array_equal(read_truth(tmp_path / "x.npy", HW).mask, MASK)


def test_grey_levels_are_foreground_above_128(tmp_path: Path) -> None:
    levels = np.arange(192, dtype=np.uint8).reshape(HW)
    np.testing.assert_array_equal(truth_of(Image.fromarray(levels), tmp_path).mask, levels > 128)
    wide = levels.astype(np.uint16) * 257
    np.testing.assert_array_equal(truth_of(Image.fromarray(wide), tmp_path).mask, levels > 128)


def test_a_mask_that_was_compressed_is_thresholded(tmp_path: Path) -> None:
    picture = grey(255)
    picture.save(tmp_path / "x.jpg", quality=50)
    stored = np.array(Image.open(tmp_path / "x.jpg"))
    assert len(np.unique(stored)) > 2
    np.testing.assert_array_equal(read_truth(tmp_path / "x.jpg", HW).mask, stored > 128)


def test_ordinary_truths_are_thresholded_as_pysodmetrics_does(shared: Path) -> None:
    paths = sorted((shared / "data/salient/pysodmetrics/masks").glob("*.png"))
    assert paths
    for path in paths:
        stored = np.array(Image.open(path).convert("L"))
        np.testing.assert_array_equal(read_truth(path, stored.shape).mask, stored > 128)


@pytest.mark.parametrize("value", [0, 255])
def test_all_black_and_all_white_are_legitimate(tmp_path: Path, value: int) -> None:
    for mode in ("L", "RGB", "RGBA", "P"):
        picture = Image.new("L", HW[::-1], value).convert(mode)
        truth = truth_of(picture, tmp_path)
        assert (truth.mask == (value == 255)).all()
        assert not truth.from_labels


def with_value(value: int, dtype: type = np.uint8) -> Image.Image:
    labels = TWO.astype(dtype)
    labels[0] = value
    return Image.fromarray(labels)


REFUSED: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "one label everywhere": (lambda: Image.new("L", HW[::-1], 1), "holds 1 in every pixel"),
    "labels without 0": (lambda: Image.fromarray(TWO + 1), "its labels begin with 1"),
    "labels and void": (lambda: with_value(255), "holds labels and 255, which may be"),
    "VOC's void": (
        lambda: palette(VOC_VOID, np.array(with_value(255))),
        "holds the label 255 beside",
    ),
    "VOC's void colour": (
        lambda: coloured((0, 0, 0), (128, 0, 0), (224, 224, 192)),
        "marks pixels as neither object nor background",
    ),
    "dark": (
        lambda: Image.fromarray(np.arange(192, dtype=np.uint8).reshape(HW) // 2),
        "reaches only 95 of 255",
    ),
    "bright": (
        lambda: Image.fromarray(200 + TWO * 20),
        "has no background: its values begin with 200",
    ),
    "8 bits in 16": (
        lambda: Image.fromarray(np.arange(192, dtype=np.uint16).reshape(HW)),
        "reaches only 191 of 65535",
    ),
    "a photograph": (noise, "is no map: it holds 192 colours and no black background"),
    "colours without black": (
        lambda: coloured((0, 0, 255), (255, 255, 0), (255, 255, 0)),
        "holds 2 colours and no black background",
    ),
    "a cut-out": (
        lambda: alpha(noise(), grey(255)),
        "holds one mask in its colours and another in alpha",
    ),
    "a palette whose black is not 0": (
        lambda: palette([255, 0, 0, 0, 0, 0, 0, 255, 0]),
        "is a colour map whose black is label 1, not 0",
    ),
    "a palette of a photograph": (
        lambda: noise().convert("P", palette=Image.Palette.ADAPTIVE, colors=100),
        "is no map: it holds ",
    ),
}


@pytest.mark.parametrize(("image", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_map_or_can_be_meant_in_two_ways_is_refused(
    tmp_path: Path, image: Callable[[], Image.Image], message: str
) -> None:
    with pytest.raises(UserError) as error:
        truth_of(image(), tmp_path)
    line = str(error.value)
    assert line.startswith(f"--truth: {tmp_path / 'x.png'} ")
    assert message in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.linspace(0, 1, 192).reshape(HW), "holds float64 from 0.0 to 1.0"),
        (np.where(MASK, np.nan, 0), "holds float64 or NaN"),
        (np.where(MASK, 1, -1), "has no background: its labels begin with -1"),
        (np.arange(192).reshape(HW) * 1000, "holds int64 from 0 to 191000"),
        (MASK.astype(complex), "holds complex128 or NaN"),
        (np.stack([MASK] * 3, axis=-1), "x.npy is 3 x 16 x 12, its image 16 x 12 pixels"),
    ],
)
def test_arrays_that_are_no_mask_are_refused(
    tmp_path: Path, values: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(UserError) as error:
        read_truth(tmp_path / "x.npy", HW)
    assert message in str(error.value)


def test_labels_in_a_jpeg_are_refused(tmp_path: Path) -> None:
    for value in (1, 100):
        with pytest.raises(UserError, match=r"reaches only .* of 255"):
            truth_of(grey(value), tmp_path, "x.jpg", quality=95)


def test_maps_of_labels_are_masks_and_colour_maps_are_refused(tmp_path: Path) -> None:
    palette(VOC).save(tmp_path / "x.png")
    stored = read_map(tmp_path / "x.png")
    assert stored.dtype == bool
    np.testing.assert_array_equal(stored, MASK)
    noise().save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"--saliency: .* is no map: it holds 192 colours"):
        read_map(tmp_path / "x.png")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_grey_maps_keep_their_levels_in_every_mode(tmp_path: Path, mode: str) -> None:
    levels = np.arange(192, dtype=np.uint8).reshape(HW)
    Image.fromarray(levels).convert(mode).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_map(tmp_path / "x.png"), levels)


def test_a_map_of_0_and_1_is_faint(tmp_path: Path) -> None:
    for value, expected in ((1, True), (2, False), (255, False)):
        grey(value).save(tmp_path / "x.png")
        assert is_faint(read_map(tmp_path / "x.png")) is expected
    assert not is_faint(MASK)
    assert not is_faint(MASK.astype(float))
