from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from efficientsam_pl import rle

HEIGHT, WIDTH = 13, 17


def blank() -> np.ndarray:
    return np.zeros((HEIGHT, WIDTH), dtype=bool)


def with_pixels(*pixels: tuple[int, int]) -> np.ndarray:
    mask = blank()
    for row, column in pixels:
        mask[row, column] = True
    return mask


def noise(share: float) -> np.ndarray:
    return np.random.default_rng(int(100 * share)).random((HEIGHT, WIDTH)) < share


MASKS = {
    "empty": blank(),
    "full": ~blank(),
    "first pixel": with_pixels((0, 0)),
    "last pixel": with_pixels((HEIGHT - 1, WIDTH - 1)),
    "a run over a column's end": with_pixels((HEIGHT - 1, 3), (0, 4)),
    "noise of a tenth": noise(0.1),
    "noise of a half": noise(0.5),
    "noise of nine tenths": noise(0.9),
}
mask_of_each_kind = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
foreground_of_each_kind = pytest.mark.parametrize(
    "mask", [m for m in MASKS.values() if m.any()], ids=[k for k, m in MASKS.items() if m.any()]
)


def slow_counts(mask: np.ndarray) -> list[int]:
    """Runs in column-major order, counted pixel by pixel, background first."""
    runs, value = [0], False
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if mask[row, column] != value:
                value = not value
                runs.append(0)
            runs[-1] += 1
    return runs


@mask_of_each_kind
def test_encoding_equals_pycocotools(mask: np.ndarray) -> None:
    expected = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
    actual = rle.encode(mask)
    assert (actual["size"], actual["counts"]) == (expected["size"], expected["counts"].decode())


@mask_of_each_kind
def test_decoding_gives_the_mask_back(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(rle.decode(rle.encode(mask)), mask)


@mask_of_each_kind
def test_counts_equal_a_slow_loop(mask: np.ndarray) -> None:
    [runs] = rle.run_lengths([rle.encode(mask)])
    assert runs.tolist() == slow_counts(mask)


def test_run_lengths_of_many_are_those_of_each() -> None:
    every = rle.run_lengths([rle.encode(mask) for mask in MASKS.values()])
    assert [runs.tolist() for runs in every] == [slow_counts(mask) for mask in MASKS.values()]


@mask_of_each_kind
def test_runs_make_the_text_again(mask: np.ndarray) -> None:
    [runs] = rle.run_lengths([rle.encode(mask)])
    assert rle.from_runs(runs, HEIGHT, WIDTH) == rle.encode(mask)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ("", "without a run"),
        ("55", "runs of 10 pixels"),
        ("P", "truncated"),  # 0x20 set: a further digit must follow
        ("5 5", "truncated"),
        ("5\x7f5", "truncated"),
        ("ooooooooo5", "seven digits"),
        ("o06L1", "pixels"),
    ],
)
def test_text_that_is_no_run_lengths_is_refused(counts: str, reason: str) -> None:
    good = rle.encode(MASKS["full"])
    with pytest.raises(ValueError, match=reason):
        rle.run_lengths([good, {"size": [HEIGHT, WIDTH], "counts": counts}, good])


def test_random_text_is_refused_or_adds_up() -> None:
    draw = np.random.default_rng(0)
    for _ in range(500):
        text = bytes(draw.integers(48, 112, draw.integers(1, 8)).tolist()).decode()
        try:
            [runs] = rle.run_lengths([{"size": [HEIGHT, WIDTH], "counts": text}])
        except ValueError:
            continue
        assert runs.sum() == HEIGHT * WIDTH
        assert runs.min() >= 0


def test_counts_of_long_runs() -> None:
    runs = [
        0,
        100_000,
        31,
        32,
        1_000_000,
        1,
        33,
        700_000,
    ]  # more than a single base-32 digit, up and down
    size = [sum(runs) // 7, 7]
    runs[-1] += size[0] * size[1] - sum(runs)
    text = coco_mask.frPyObjects({"size": size, "counts": runs}, *size)
    [actual] = rle.run_lengths([rle.from_coco(text, *size)])
    assert actual.tolist() == runs


@mask_of_each_kind
def test_uncompressed_runs_give_the_same_record(mask: np.ndarray) -> None:
    uncompressed = {"size": [HEIGHT, WIDTH], "counts": slow_counts(mask)}
    assert rle.from_coco(uncompressed, HEIGHT, WIDTH) == rle.encode(mask)


@mask_of_each_kind
def test_compressed_runs_pass_as_bytes_or_text(mask: np.ndarray) -> None:
    record = rle.encode(mask)
    as_bytes = record | {"counts": record["counts"].encode()}
    assert rle.from_coco(as_bytes, HEIGHT, WIDTH) == record
    assert rle.from_coco(record, HEIGHT, WIDTH) == record


def test_masks_encoded_together_equal_masks_encoded_apart() -> None:
    masks = np.stack(list(MASKS.values()))
    assert rle.encode_many(masks) == [rle.encode(mask) for mask in masks]
    assert rle.encode_many(masks[:0]) == []


@mask_of_each_kind
def test_area_counts_the_pixels(mask: np.ndarray) -> None:
    assert rle.area(rle.encode(mask)) == mask.sum()


@foreground_of_each_kind
def test_box_goes_through_the_outermost_pixels(mask: np.ndarray) -> None:
    rows, columns = np.nonzero(mask)
    expected = (columns.min(), rows.min(), columns.max(), rows.max())
    assert rle.box_xyxy(rle.encode(mask)) == expected
    assert rle.boxes_xyxy([rle.encode(mask)]).tolist() == [list(expected)]


def test_box_of_an_empty_mask_holds_no_pixel() -> None:
    assert rle.box_xyxy(rle.encode(MASKS["empty"])) == (0, 0, -1, -1)
    assert rle.boxes_xyxy([]).shape == (0, 4)


@foreground_of_each_kind
def test_foreground_points_are_the_pixels_column_by_column(mask: np.ndarray) -> None:
    xy = np.stack(np.nonzero(mask.T), axis=-1)  # nonzero of the transpose walks down columns
    runs = rle.foreground_runs(rle.run_lengths([rle.encode(mask)]))
    actual = rle.foreground_points(runs, HEIGHT, np.arange(len(xy))[None])
    np.testing.assert_array_equal(actual[0], xy)


def test_foreground_points_come_in_the_order_of_the_ranks() -> None:
    masks = [with_pixels((5, 2), (1, 3), (2, 3)), MASKS["full"], with_pixels((0, 0), (7, 8))]
    runs = rle.foreground_runs(rle.run_lengths([rle.encode(mask) for mask in masks]))
    ranks = np.array([[2, 0, 0, 1], [0, 13, 14, 220], [1, 0, 1, 0]])
    first, second, third = rle.foreground_points(runs, HEIGHT, ranks).tolist()
    assert first == [[3, 2], [2, 5], [2, 5], [3, 1]]
    assert second == [[0, 0], [1, 0], [1, 1], [16, 12]]
    assert third == [[8, 7], [0, 0], [8, 7], [0, 0]]


def test_foreground_runs_of_an_empty_mask_are_none() -> None:
    masks = [MASKS["empty"], with_pixels((3, 4)), MASKS["empty"]]
    runs = rle.foreground_runs(rle.run_lengths([rle.encode(mask) for mask in masks]))
    assert (runs.mask.tolist(), runs.begin.tolist()) == ([1], [4 * HEIGHT + 3])
    assert rle.foreground_runs([]).mask.shape == (0,)


def test_polygon_of_a_rectangle_is_the_rectangle() -> None:
    expected = blank()
    expected[2:6, 3:10] = True
    polygon = [3, 2, 10, 2, 10, 6, 3, 6]
    np.testing.assert_array_equal(rle.decode(rle.from_coco([polygon], HEIGHT, WIDTH)), expected)


def test_several_polygons_are_one_mask() -> None:
    triangle, square = [1, 1, 9, 1, 5, 8], [4, 4, 12, 4, 12, 11, 4, 11]
    apart = [coco_mask.frPyObjects([p], HEIGHT, WIDTH)[0] for p in (triangle, square)]
    union = (coco_mask.decode(apart) > 0).any(-1)
    actual = rle.decode(rle.from_coco([triangle, square], HEIGHT, WIDTH))
    np.testing.assert_array_equal(actual, union)


@pytest.mark.parametrize("polygons", [[], [[1, 1, 5, 5]], [[1, 1, 5, 1, 5, 5], []]])
def test_polygons_without_three_corners_are_refused(polygons: Any) -> None:
    with pytest.raises(ValueError, match="three corners"):
        rle.from_coco(polygons, HEIGHT, WIDTH)


@pytest.mark.parametrize("corner", [1e9, -1e9, float("nan"), float("inf")])
def test_polygons_with_corners_far_away_or_not_finite_are_refused(corner: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        rle.from_coco([[0.0, 0.0, corner, 0.0, 5.0, 5.0]], HEIGHT, WIDTH)


def test_polygon_that_reaches_beyond_the_image_is_cut_at_its_edge() -> None:
    mask = rle.decode(rle.from_coco([[-20, -20, 50, -20, 50, 50, -20, 50]], HEIGHT, WIDTH))
    assert mask.all()


def test_run_lengths_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[13, 17\].*\[17, 13\]"):
        rle.from_coco(rle.encode(blank()), WIDTH, HEIGHT)


def test_dense_masks_of_any_size_are_encoded_as_pycocotools_does() -> None:
    """Widths that fill no whole byte, single rows and columns, and masks that touch each other."""
    draw = np.random.default_rng(0)
    for _ in range(200):
        count, height, width = draw.integers(1, (4, 40, 40))
        masks = draw.random((count, height, width)) < draw.choice([0, 0.02, 0.5, 0.98, 1])
        columns = np.asfortranarray(masks.transpose(1, 2, 0).view(np.uint8))
        expected = [r["counts"].decode() for r in coco_mask.encode(columns)]
        assert [r["counts"] for r in rle.encode_many(masks)] == expected


def test_masks_that_lie_otherwise_in_memory_are_encoded_alike() -> None:
    masks = np.stack(list(MASKS.values()))
    turned = np.ascontiguousarray(masks.transpose(0, 2, 1)).transpose(0, 2, 1)
    assert rle.encode_many(turned) == rle.encode_many(masks)


def test_flips_are_where_a_pixel_differs_from_the_one_before() -> None:
    masks = np.stack([with_pixels((0, 0), (1, 0)), with_pixels((HEIGHT - 1, 2), (0, 3))])
    second = HEIGHT * WIDTH
    expected = [0, 2, second + 3 * HEIGHT - 1, second + 3 * HEIGHT + 1]
    assert rle.flips(masks).tolist() == expected


def test_iou_of_pairs_equals_a_count_of_pixels() -> None:
    masks = [mask for mask in MASKS.values() if mask.any()]
    others = masks[1:] + masks[:1]
    actual = rle.pair_iou([rle.encode(m) for m in masks], [rle.encode(m) for m in others])
    expected = [(m & o).sum() / (m | o).sum() for m, o in zip(masks, others, strict=True)]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    assert rle.areas([rle.encode(m) for m in masks]).tolist() == [m.sum() for m in masks]


def test_areas_of_more_masks_than_a_byte_counts() -> None:
    assert rle.areas([rle.encode(with_pixels((0, 0)))] * 300).tolist() == [1.0] * 300
