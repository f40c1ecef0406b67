"""That the benchmark of average precision compares the same numbers; times are not judged here."""

from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.evaluate import average_precision
from benchmarks.finetune.mask_ap import EncodedImage, encoded, masked_images


@pytest.fixture(scope="module")
def drawn() -> list[EncodedImage]:
    return [encoded(photo) for photo in masked_images(2, masks=6)]


@pytest.mark.parametrize("categories", [1, 5])
def test_both_ways_give_the_same_numbers(drawn: list[EncodedImage], categories: int) -> None:
    photos = average_precision.evaluated_images(drawn, 7, categories)
    found = average_precision.by_us(photos, categories)
    expected = average_precision.by_coco(average_precision.prepared_coco(photos, categories))
    assert 0 < expected[0] < 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_quick_rows_are_of_fewer_images(
    drawn: list[EncodedImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    make = average_precision.evaluated_images

    def recorded(
        some: Sequence[EncodedImage], photos: int, categories: int
    ) -> list[average_precision.Evaluated]:
        asked.append(photos)
        return make(some, 3, categories)

    monkeypatch.setattr(average_precision, "masked_images", lambda count, masks: drawn)
    monkeypatch.setattr(average_precision, "encoded", lambda photo: photo)
    monkeypatch.setattr(average_precision, "evaluated_images", recorded)
    rows = {row.id: row for row in average_precision.rows(quick=True)}
    assert max(asked) <= 200
    assert len(rows) == 6
    for name in ("one_category", "eighty_categories"):
        assert rows[f"evaluate.ap_difference.{name}"].met() is True
        assert rows[f"evaluate.ap.{name}"].reference is not None
