"""`Predictor` and `EmbeddedImage`: images, prompts of every type, padding, many prompts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from efficientsam_pl.geometry import Resize
from efficientsam_pl.inference.predictor import EmbeddedImage, Predictor
from efficientsam_pl.inference.prompt_inputs import ClippedBoxWarning, PromptError
from efficientsam_pl.models import segmenter as segmenter_module
from efficientsam_pl.models.config import PromptEncoderConfig
from efficientsam_pl.models.segmenter import Segmenter

HEIGHT, WIDTH = 48, 64
LOW_RES = 16
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
BOX = [3, 4, 40, 30]


class OnGpu(Tensor):
    """A tensor that NumPy cannot read before `cpu()`, as one on a GPU."""

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    numpy = __array__

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return self.as_subclass(Tensor).clone()


def on_gpu(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32).as_subclass(OnGpu)


@pytest.fixture
def embedded(tiny: Segmenter) -> EmbeddedImage:
    return Predictor(tiny).embed(PIXELS)


@pytest.fixture
def sam_image(tiny_sam: Segmenter) -> EmbeddedImage:
    return Predictor(tiny_sam).embed(PIXELS)


def interactive(model: Segmenter) -> Segmenter:
    """EfficientSAM with mask prompts, twelve points, padded to six as the named configs."""
    prompts = PromptEncoderConfig(
        negative_clicks=True, mask_prompts=True, max_points=12, min_points=6
    )
    torch.manual_seed(0)
    other = Segmenter(replace(model.config, prompts=prompts)).eval()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return other


def logits(image: EmbeddedImage, **prompts: Any) -> Tensor:
    return image.predict(**prompts).low_res_logits


# images


def read_only(pixels: np.ndarray) -> np.ndarray:
    copy = pixels.copy()
    copy.flags.writeable = False
    return copy


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        lambda rgb: torch.from_numpy(rgb).permute(2, 0, 1),
        torch.from_numpy,
        lambda rgb: np.ascontiguousarray(rgb[..., ::-1])[..., ::-1],
        np.asfortranarray,
        lambda rgb: np.ascontiguousarray(rgb[::-1])[::-1],
        lambda rgb: np.dstack([rgb, np.full((HEIGHT, WIDTH), 9, np.uint8)]),
        read_only,
    ],
    ids=["PIL", "tensor", "tensor hwc", "bgr view", "fortran", "flipped", "rgba", "read-only"],
)
def test_same_pixels_give_the_same_features(
    convert: Callable[[np.ndarray], Any], tiny: Segmenter, embedded: EmbeddedImage
) -> None:
    features = Predictor(tiny).embed(convert(PIXELS)).features
    torch.testing.assert_close(features, embedded.features, rtol=0, atol=0)


def test_grey_image_is_its_three_equal_channels(tiny: Segmenter) -> None:
    grey, rgb = PIXELS[..., 0], np.repeat(PIXELS[..., :1], 3, axis=2)
    expected = Predictor(tiny).embed(rgb).features
    for image in (grey, Image.fromarray(grey), grey[..., None]):
        torch.testing.assert_close(Predictor(tiny).embed(image).features, expected)


@pytest.mark.parametrize(
    "image",
    [PIXELS / 255, PIXELS.astype(np.int64), PIXELS[None], PIXELS[:0], "dog.png", None],
    ids=["floats", "int64", "batch", "empty", "path", "None"],
)
def test_what_is_no_image_is_named(image: Any, tiny: Segmenter) -> None:
    with pytest.raises(PromptError, match="image: "):
        Predictor(tiny).embed(image)


# types of prompts


@pytest.mark.parametrize(
    "convert",
    [
        tuple,
        np.array,
        lambda x: np.array(x, dtype=np.float16),
        lambda x: np.array(x, dtype=">i4"),
        lambda x: np.array(x, dtype=np.uint8)[..., ::-1][..., ::-1],
        torch.tensor,
        lambda x: torch.tensor(x, dtype=torch.bfloat16),
        lambda x: torch.tensor(x, dtype=torch.float64, requires_grad=True),
        lambda x: [torch.tensor(row) for row in x],
        on_gpu,
        lambda x: [on_gpu(row) for row in x],
    ],
    ids=range(11),
)
def test_prompts_may_be_lists_arrays_and_tensors_of_any_type(
    convert: Callable[[Any], Any], embedded: EmbeddedImage
) -> None:
    points, labels, boxes = [[[9, 8], [20, 30]], [[1, 2], [3, 4]]], [[1, 1], [1, 1]], [BOX, BOX]
    expected = logits(embedded, points=points, labels=labels, boxes=boxes)
    actual = logits(embedded, points=convert(points), labels=convert(labels), boxes=convert(boxes))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("axes", ["[q, m, m]", "[q, 1, m, m]", "[m, m]"])
def test_logits_are_fed_back_from_a_gpu(axes: str, sam_image: EmbeddedImage) -> None:
    first = sam_image.predict(boxes=[BOX])
    best = on_gpu(first.low_res_logits[:, 0])
    shaped = {"[q, m, m]": best, "[q, 1, m, m]": best[:, None], "[m, m]": best[0]}[axes]
    second = sam_image.predict(boxes=on_gpu([BOX]), mask_logits=shaped)
    expected = sam_image.predict(boxes=[BOX], mask_logits=first.low_res_logits[:, 0])
    assert torch.equal(second.low_res_logits.cpu(), expected.low_res_logits)
    assert not torch.equal(expected.low_res_logits, first.low_res_logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_model_in_another_precision_predicts_in_float32(
    dtype: torch.dtype, tiny: Segmenter, embedded: EmbeddedImage
) -> None:
    expected = embedded.predict(boxes=[BOX])
    converted = Predictor(tiny.to(dtype)).embed(PIXELS)
    actual = converted.predict(boxes=[BOX])
    assert converted.features.dtype == dtype
    assert actual.low_res_logits.dtype == actual.iou.dtype == torch.float32
    tolerance = {"rtol": 0.0, "atol": 0.1 * float(expected.low_res_logits.abs().max())}
    torch.testing.assert_close(actual.low_res_logits, expected.low_res_logits, **tolerance)


def test_half_model_takes_mask_prompts(tiny_efficient_sam: Segmenter) -> None:
    image = Predictor(interactive(tiny_efficient_sam).bfloat16()).embed(PIXELS)
    first = image.predict(boxes=[BOX])
    second = image.predict(points=[[[9, 9]]], mask_logits=first.low_res_logits[:, 0])
    assert second.masks.shape == (1, 3, HEIGHT, WIDTH)


# mistakes

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({}, "no prompt"),
    ({"labels": [[1]]}, "labels without points"),
    ({"points": [[1, 2]]}, r"\[q, p, 2\], not \[1, 2\]; .*points\[None\]"),
    ({"points": [[[1, 2, 3]]]}, r"\[q, p, 2\], not \[1, 1, 3\]"),
    ({"points": np.array(5)}, r"\[q, p, 2\], not \[\]"),
    ({"points": [[[1, 2], [3, 4]], [[5, 6]]]}, "points has rows of unequal lengths.*label -1"),
    ({"points": [[[1, 2]]], "labels": [1]}, r"labels must have the shape \[1, 1\].*not \[1\]"),
    ({"points": [[[1, 2]]], "labels": [[7]]}, "unknown label 7"),
    ({"points": [[[1, 2]]], "labels": [[0.5]]}, "unknown label 0.5"),
    ({"points": [[[1, 2]], [[3, 4]]], "labels": [[1], [-1]]}, "prompt 1 has no point"),
    ({"points": [[[float("nan"), 2]]]}, r"point \(nan, 2\) is not finite"),
    ({"points": [[[1e300, 2]]]}, r"point \(inf, 2\) is not finite"),
    ({"points": [[["a", "b"]]]}, "points must be numbers"),
    ({"points": torch.zeros(1, 1, 2, dtype=torch.complex64)}, "real numbers"),
    ({"points": [[[64.5, 2]]]}, r"point \(64.5, 2\) lies outside the image of 64 x 48 pixels"),
    ({"points": [[[-1, 2]]]}, r"point \(-1, 2\) lies outside"),
    ({"boxes": BOX}, r"\[q, 4\], not \[4\]; .*boxes\[None\]"),
    ({"boxes": [[1, 2, 3]]}, r"\[q, 4\], not \[1, 3\]"),
    ({"boxes": [[1, 2, float("inf"), 3]]}, "box 1,2,inf,3 is not finite"),
    ({"boxes": [[30, 2, 10, 9]]}, "x0 <= x1"),
    ({"boxes": [[70, 2, 80, 9]]}, "box 70,2,80,9 lies outside the image of 64 x 48 pixels"),
    ({"boxes": [[-9, 2, 0, 9]]}, "box -9,2,0,9 lies outside"),
    ({"boxes": [BOX], "points": [[[1, 2]], [[3, 4]]]}, "points 2, boxes 1"),
    ({"mask_logits": np.zeros((1, 4, 4))}, r"\[1, 16, 16\], not \[1, 4, 4\]"),
    ({"boxes": [BOX, BOX], "mask_logits": np.zeros((16, 16))}, r"\[2, 16, 16\], not \[16, 16\]"),
    ({"mask_logits": np.full((1, 16, 16), np.nan)}, "mask_logits must be finite"),
]  # fmt: skip


@pytest.mark.parametrize(("prompts", "message"), MISTAKES, ids=lambda x: str(x)[:40])
def test_prompt_that_cannot_be_predicted_names_the_mistake(
    prompts: dict[str, Any], message: str, embedded: EmbeddedImage
) -> None:
    for predict in (embedded.predict, embedded.predict_each):
        with pytest.raises(PromptError, match=message) as caught:
            predict(**prompts)
        assert "\n" not in str(caught.value)


def test_prompt_types_that_a_model_lacks_are_named(tiny_efficient_sam: Segmenter) -> None:
    image = Predictor(tiny_efficient_sam).embed(PIXELS)
    with pytest.raises(PromptError, match="negative clicks"):
        image.predict(points=[[[1, 2]]], labels=[[0]])
    with pytest.raises(PromptError, match="mask prompts"):
        image.predict(mask_logits=np.zeros((1, 16, 16)))
    with pytest.raises(PromptError, match="7 points"):
        image.predict(points=np.zeros((1, 7, 2)))
    with pytest.raises(PromptError, match="chunk_size=0"):
        image.predict_each(boxes=[BOX], chunk_size=0)


@pytest.mark.parametrize(
    "prompts",
    [{"boxes": []}, {"boxes": np.zeros((0, 4))}, {"points": torch.zeros(0, 3, 2)}, {"points": []}],
    ids=lambda x: str(x)[:30],
)
def test_no_rows_give_empty_results(prompts: dict[str, Any], embedded: EmbeddedImage) -> None:
    result = embedded.predict(**prompts)
    assert result.masks.shape == (0, 3, HEIGHT, WIDTH)
    assert result.iou.shape == (0, 3)
    assert result.low_res_logits.shape == (0, 3, LOW_RES, LOW_RES)
    assert result.best().shape == (0, HEIGHT, WIDTH)
    assert list(embedded.predict_each(**prompts)) == []


def test_boxes_that_reach_out_of_the_image_are_clipped_and_counted(
    embedded: EmbeddedImage,
) -> None:
    boxes = [[-5, 4, 40, 30], BOX, [3, 4, 70.5, 99], [0, 0, WIDTH + 0.005, HEIGHT]]
    clipped = [[0, 4, 40, 30], BOX, [3, 4, WIDTH, HEIGHT], [0, 0, WIDTH, HEIGHT]]
    with pytest.warns(ClippedBoxWarning, match="2 boxes reached out of .* 64 x 48"):
        actual = logits(embedded, boxes=boxes)
    assert torch.equal(actual, logits(embedded, boxes=clipped))


# padding


@pytest.mark.parametrize("place", [(-1, -1), (30, 20), (9999, -7), (float("nan"), float("inf"))])
@pytest.mark.parametrize("slots", [1, 3, 9])
def test_padding_changes_nothing_whatever_it_holds(
    slots: int, place: tuple[float, float], embedded: EmbeddedImage
) -> None:
    clicks = [[10, 12], [40, 33]]
    expected = logits(embedded, points=[clicks], labels=[[1, 1]])
    points = [[clicks[0], *[place] * slots, clicks[1]]]
    labels = [[1, *[-1] * slots, 1]]
    assert torch.equal(logits(embedded, points=points, labels=labels), expected)
    box = logits(embedded, points=[[place] * slots], labels=[[-1] * slots], boxes=[BOX])
    assert torch.equal(box, logits(embedded, boxes=[BOX]))


@pytest.mark.parametrize("kind", ["sam", "interactive"])
def test_prompts_of_unequal_lengths_are_predicted_as_each_alone(
    kind: str, tiny_sam: Segmenter, tiny_efficient_sam: Segmenter
) -> None:
    model = tiny_sam if kind == "sam" else interactive(tiny_efficient_sam)
    image = Predictor(model).embed(PIXELS)
    draw = np.random.default_rng(1)
    lengths = [8, 1, 3, 1, 8, 2]
    points = draw.uniform(0, HEIGHT, (len(lengths), 8, 2))
    labels = draw.integers(0, 2, (len(lengths), 8))
    for row, length in enumerate(lengths):
        labels[row, length:] = -1
    together = logits(image, points=points, labels=labels)
    for row, length in enumerate(lengths):
        alone = logits(image, points=points[[row], :length], labels=labels[[row], :length])
        torch.testing.assert_close(together[[row]], alone, rtol=1e-4, atol=1e-4)


# many prompts


def boxes(count: int) -> np.ndarray:
    corners = np.random.default_rng(2).uniform(0, 20, (count, 2))
    return np.concatenate([corners, corners + 20], axis=1)


@pytest.fixture
def two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the decoder take two prompts of the tiny models at a time."""
    monkeypatch.setitem(segmenter_module._CHUNK_TOKENS, "cpu", 2 * 4**2)


@pytest.mark.usefixtures("two_at_once")
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("single_mask", [False, True])
def test_chunk_size_does_not_change_a_bit(
    single_mask: bool, chunk_size: int, embedded: EmbeddedImage
) -> None:
    expected = embedded.predict(boxes=boxes(7), single_mask=single_mask)
    each = list(
        embedded.predict_each(boxes=boxes(7), single_mask=single_mask, chunk_size=chunk_size)
    )
    assert len(each) == 7
    for index, prediction in enumerate(each):
        assert torch.equal(prediction.low_res_logits, expected.low_res_logits[index])
        assert torch.equal(prediction.iou, expected.iou[index])
        assert torch.equal(prediction.masks(), expected.masks[index])
        assert torch.equal(prediction.logits() > 0, expected.masks[index])
        assert torch.equal(prediction.best_mask(), expected.best()[index])


@pytest.mark.usefixtures("two_at_once")
def test_predictions_one_by_one_decode_and_resize_only_what_is_taken(
    embedded: EmbeddedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, resized = [], []
    decode, masks_back = Segmenter.decode, Resize.masks_back

    def count_decoded(self: Segmenter, features: Tensor, prompts: Any) -> Any:
        decoded.append(prompts.labels.shape[1])
        return decode(self, features, prompts)

    def count_resized(self: Resize, low_res: Tensor) -> Tensor:
        resized.append(low_res.shape[:2].numel())
        return masks_back(self, low_res)

    monkeypatch.setattr(Segmenter, "decode", count_decoded)
    monkeypatch.setattr(Resize, "masks_back", count_resized)
    predictions = embedded.predict_each(boxes=boxes(9), chunk_size=4)
    first = next(predictions)
    assert (decoded, resized) == ([4], [])
    first.best_mask()
    list(predictions)
    assert (decoded, resized) == ([4, 4, 1], [1])
