"""Means over records: by hand, by numpy, and in any order."""

import random

import numpy as np
import pytest

from efficientsam_pl.evaluation.metrics.sizes import size_of
from efficientsam_pl.evaluation.results.record import ImageRecord, ProtocolScores
from efficientsam_pl.evaluation.results.tally import Tally


def record(photo: int, count: int) -> ImageRecord:
    draw = np.random.default_rng(photo)
    chosen, more, filled = draw.random((3, count)).tolist()
    oracle = [max(pair) for pair in zip(chosen, more, strict=True)]
    areas = (draw.random(count) * 200) ** 2
    marks = {name: ProtocolScores(tuple(chosen), tuple(oracle)) for name in ("box", "click_center")}
    return ImageRecord(
        photo,
        tuple(range(count)),
        tuple(areas.tolist()),
        tuple(filled),
        marks=marks,
        crowds=1,
        empty=2,
    )


def tally(records: list[ImageRecord]) -> Tally:
    whole = Tally(["box", "click_center"])
    for one in records:
        whole.add(one)
    return whole


RECORDS = [record(photo, photo % 9) for photo in range(40)]


def test_means_are_over_instances_not_over_images() -> None:
    first = ImageRecord(1, (1,), (10.0,), (0.5,), marks={"box": ProtocolScores((1.0,), (1.0,))})
    second = ImageRecord(
        2,
        (1, 2, 3),
        (10.0, 5000.0, 99999.0),
        (0.5,) * 3,
        marks={"box": ProtocolScores((0.0,) * 3, (0.4,) * 3)},
    )
    whole = Tally(["box"])
    whole.add(first)
    whole.add(second)
    numbers = whole.numbers()["box"]
    assert numbers["miou"] == {"all": 0.25, "small": 0.5, "medium": 0.0, "large": 0.0}
    assert numbers["oracle_miou"]["all"] == pytest.approx((1 + 3 * 0.4) / 4)
    assert numbers["filled_box_miou"]["all"] == 0.5


def test_means_are_numpys() -> None:
    areas = np.concatenate([one.areas for one in RECORDS])
    chosen = np.concatenate([one.marks["click_center"].chosen for one in RECORDS])
    found = tally(RECORDS).numbers()["click_center"]
    kinds = {
        "all": areas >= 0,
        "small": areas < 1024,
        "medium": (areas >= 1024) & (areas < 9216),
        "large": areas >= 9216,
    }
    assert found["miou"] == pytest.approx({n: chosen[kind].mean() for n, kind in kinds.items()})
    assert "filled_box_miou" not in found
    counts = tally(RECORDS).counts()
    assert [counts[f"{name}_instances"] for name in list(kinds)[1:]] == [
        kind.sum() for kind in list(kinds.values())[1:]
    ]


def test_what_a_mask_grid_allows_stands_beside_the_filled_box_by_size() -> None:
    marks = {
        "box": ProtocolScores((0.5, 0.5), (0.5, 0.5)),
        "click_center": ProtocolScores((0.5, 0.5), (0.5, 0.5)),
    }
    whole = tally([
        ImageRecord(1, (1, 2), (10.0, 5000.0), (0.8, 0.8), (0.4, 0.6), (0.7, 0.9), marks),
        ImageRecord(2, marks={name: ProtocolScores((), ()) for name in marks}),
    ])  # fmt: skip
    numbers = whole.numbers()
    assert numbers["box"]["filled_box_grid_miou"] == {
        "all": 0.5, "small": 0.4, "medium": 0.6, "large": None,
    }  # fmt: skip
    assert numbers["box"]["reachable_miou"] == pytest.approx(
        {"all": 0.8, "small": 0.7, "medium": 0.9, "large": None}
    )
    assert "reachable_miou" not in numbers["click_center"]


def test_a_segmenter_without_a_grid_has_no_such_numbers() -> None:
    assert set(tally(RECORDS).numbers()["box"]) == {"miou", "oracle_miou", "filled_box_miou"}


def test_order_of_images_changes_no_digit() -> None:
    mixed = RECORDS.copy()
    for seed in range(20):
        random.Random(seed).shuffle(mixed)
        assert tally(mixed).numbers() == tally(RECORDS).numbers()
        assert tally(mixed).counts() == tally(RECORDS).counts()


def test_skipped_and_damaged_are_counted_and_not_scored() -> None:
    damaged = ImageRecord(99, damage=("bad photo", "a.jpg", ""))
    counts = tally([*RECORDS, damaged]).counts()
    assert counts["photos"] == 40
    assert counts["damaged_photos"] == 1
    assert (counts["skipped_crowds"], counts["skipped_empty"]) == (40, 80)
    assert counts["instances"] == sum(photo % 9 for photo in range(40))
    assert tally([*RECORDS, damaged]).numbers() == tally(RECORDS).numbers()


def test_image_is_never_scored_twice() -> None:
    with pytest.raises(ValueError, match="photo 3 is scored twice"):
        tally([*RECORDS, RECORDS[3]])


def test_record_of_other_protocols_is_refused() -> None:
    whole = Tally(["box"])
    with pytest.raises(ValueError, match="photo 1 was scored by"):
        whole.add(RECORDS[1])


def test_no_instance_has_no_mean() -> None:
    assert Tally(["box"]).numbers()["box"]["miou"]["all"] is None


@pytest.mark.parametrize(
    ("area", "size"),
    [(0.0, "small"), (1023.9, "small"), (1024.0, "medium"), (9215.9, "medium"), (9216.0, "large")],
)
def test_borders_are_cocos(area: float, size: str) -> None:
    assert size_of(area) == size
