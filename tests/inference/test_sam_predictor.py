"""`SamPredictor` takes the calls of programs that are written for SAM's."""

import numpy as np
import pytest
import torch

from efficientsam_pl.inference.predictor import EmbeddedImage, Predictor
from efficientsam_pl.inference.prompt_inputs import PromptError
from efficientsam_pl.inference.sam_predictor import SamPredictor
from efficientsam_pl.models.segmenter import Segmenter

HEIGHT, WIDTH = 36, 72
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
BOXES = np.array([[3.0, 4, 40, 30], [0, 0, WIDTH, HEIGHT], [20, 10, 33, 21]])


@pytest.fixture
def sam(tiny: Segmenter) -> SamPredictor:
    predictor = SamPredictor(tiny)
    predictor.set_image(PIXELS)
    return predictor


@pytest.fixture
def embedded(tiny: Segmenter) -> EmbeddedImage:
    return Predictor(tiny).embed(PIXELS)


def test_state_of_the_image_is_sams(sam: SamPredictor, tiny: Segmenter) -> None:
    assert sam.is_image_set
    assert sam.original_size == (HEIGHT, WIDTH)
    assert sam.input_size == ((32, 64) if tiny.config.resize == "pad" else (64, 64))
    assert sam.get_image_embedding().shape == (1, 32, 4, 4)
    assert sam.device == torch.device("cpu")
    sam.reset_image()
    assert not sam.is_image_set
    for call in (sam.predict, sam.get_image_embedding, lambda: sam.predict_torch(None, None)):
        with pytest.raises(PromptError, match="call set_image"):
            call()


def test_bgr_is_rgb_reversed(sam: SamPredictor, tiny: Segmenter) -> None:
    other = SamPredictor(tiny)
    other.set_image(np.ascontiguousarray(PIXELS[..., ::-1]), image_format="BGR")
    assert torch.equal(other.features, sam.features)
    with pytest.raises(PromptError, match="'bgr' must be 'RGB' or 'BGR'"):
        other.set_image(PIXELS, "bgr")


def test_one_prompt_is_that_of_the_embedded_image(
    sam: SamPredictor, embedded: EmbeddedImage
) -> None:
    expected = embedded.predict([[[9, 8], [20, 30]]], [[1, 1]], BOXES[:1])
    points = np.array([[9, 8], [20, 30]])
    for box in (BOXES[0], BOXES[:1], torch.tensor(BOXES[0], dtype=torch.bfloat16)):
        masks, iou, low_res = sam.predict(points, np.array([1, 1]), box)
        assert (masks.dtype, iou.dtype, low_res.dtype) == (bool, np.float32, np.float32)
        np.testing.assert_array_equal(masks, expected.masks[0].numpy())
        np.testing.assert_array_equal(iou, expected.iou[0].numpy())
        np.testing.assert_array_equal(low_res, expected.low_res_logits[0].numpy())
    logits, _, _ = sam.predict(points, np.array([1, 1]), BOXES[0], return_logits=True)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits > 0, expected.masks[0].numpy())
    single, _, _ = sam.predict(box=BOXES[0], multimask_output=False)
    assert single.shape == (1, HEIGHT, WIDTH)


def test_logits_are_fed_back_as_in_sams_notebook(tiny_sam: Segmenter) -> None:
    sam = SamPredictor(tiny_sam)
    sam.set_image(PIXELS)
    points, labels = np.array([[9, 8]]), np.array([1])
    _, scores, logits = sam.predict(points, labels)
    mask_input = logits[np.argmax(scores)]
    masks, _, again = sam.predict(
        point_coords=points,
        point_labels=labels,
        mask_input=mask_input[None, :, :],
        multimask_output=False,
    )
    assert masks.shape == (1, HEIGHT, WIDTH)
    assert not np.array_equal(again, sam.predict(points, labels, multimask_output=False)[2])


def test_transformed_boxes_are_predicted_together(
    sam: SamPredictor, embedded: EmbeddedImage
) -> None:
    expected = embedded.predict(boxes=BOXES)
    scaled = sam.transform.apply_boxes_torch(torch.tensor(BOXES), PIXELS.shape[:2])
    np.testing.assert_array_equal(sam.transform.apply_boxes(BOXES, PIXELS.shape[:2]), scaled)
    assert scaled[1].tolist() == [0, 0, *reversed(sam.input_size)]
    masks, iou, low_res = sam.predict_torch(
        point_coords=None, point_labels=None, boxes=scaled, multimask_output=True
    )
    assert masks.shape == (3, 3, HEIGHT, WIDTH)
    torch.testing.assert_close(low_res, expected.low_res_logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(iou, expected.iou, rtol=1e-3, atol=1e-3)
    logits, _, _ = sam.predict_torch(None, None, scaled, return_logits=True)
    assert torch.equal(logits > 0, masks)


def test_transformed_points_may_lie_on_the_border(
    sam: SamPredictor, embedded: EmbeddedImage
) -> None:
    points = np.array([[[WIDTH, HEIGHT]], [[0, 0]], [[35.3, 17.9]]])
    scaled = sam.transform.apply_coords(points, (HEIGHT, WIDTH))
    _, _, low_res = sam.predict_torch(scaled, torch.ones(3, 1))
    expected = embedded.predict(points).low_res_logits
    torch.testing.assert_close(low_res, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(PromptError, match="outside"):
        sam.predict_torch(scaled + 9, torch.ones(3, 1))


@pytest.mark.parametrize("logits", [False, True])
def test_no_boxes_give_no_masks(logits: bool, sam: SamPredictor) -> None:
    masks, iou, low_res = sam.predict_torch(
        None, None, torch.zeros(0, 4), return_logits=logits, multimask_output=False
    )
    assert masks.shape == (0, 1, HEIGHT, WIDTH)
    assert masks.dtype == (torch.float32 if logits else torch.bool)
    assert (iou.shape, low_res.shape) == ((0, 1), (0, 1, 16, 16))


def test_wrong_shapes_are_named(sam: SamPredictor) -> None:
    with pytest.raises(PromptError, match=r"point_coords must have the shape \[p, 2\]"):
        sam.predict(np.zeros((1, 1, 2)), np.ones(1))
    with pytest.raises(PromptError, match=r"point_labels must have the shape \[p\]"):
        sam.predict(np.zeros((1, 2)), np.ones((1, 1)))
    with pytest.raises(PromptError, match="predict_torch takes several"):
        sam.predict(box=BOXES)
    with pytest.raises(PromptError, match=r"point_coords must have 2 values along the last axis"):
        sam.predict_torch(np.zeros((1, 1, 3)), np.ones((1, 1)))
    with pytest.raises(PromptError, match=r"points must have the shape \[q, p, 2\]"):
        sam.predict_torch(np.zeros((1, 2)), np.ones(1))
    for boxes in (np.zeros((2, 3)), np.array(1.0)):
        with pytest.raises(PromptError, match=r"boxes must have 4 values along the last axis"):
            sam.transform.apply_boxes(boxes, sam.original_size)
        with pytest.raises(PromptError, match=r"boxes must have 4 values along the last axis"):
            sam.predict_torch(None, None, boxes)
