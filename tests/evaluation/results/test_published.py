"""The paper's numbers: checked against each other and against the text that quotes them."""

import pytest

from efficientsam_pl.evaluation.results import published


def row(table: tuple[published.PublishedRow, ...], model: str) -> published.PublishedRow:
    [found] = [one for one in table if one.model == model]
    return found


def test_every_row_has_a_number_for_every_name() -> None:
    for table, names in (
        (published.MIOU, published.PROTOCOLS),
        (published.AP, published.AP_NAMES),
    ):
        assert len({one.model for one in table}) == len(table)
        for one in table:
            for kind in published.DATA:
                assert len(one.values(kind)) == len(names)
                assert all(20 < value < 80 for value in one.values(kind))


@pytest.mark.parametrize("kind", ["coco", "lvis"])
def test_more_clicks_help_and_boxes_help_most(kind: str) -> None:
    for one in published.MIOU:
        box, click1, click3 = one.values(kind)
        assert click1 < click3 < box


@pytest.mark.parametrize("kind", ["coco", "lvis"])
def test_larger_objects_are_easier_and_the_mean_lies_between(kind: str) -> None:
    for one in published.AP:
        whole, small, medium, large = one.values(kind)
        assert small < medium < large
        assert small < whole < large


def test_gaps_are_those_that_the_papers_abstract_and_text_tell() -> None:
    """About 4 AP over MobileSAM on COCO and LVIS; 44.4 and 42.3 against SAM's 46.5 and 44.7."""
    small, tiny = row(published.AP, "EfficientSAM-S"), row(published.AP, "EfficientSAM-Ti")
    sam, mobile = row(published.AP, "SAM-H"), row(published.AP, "MobileSAM")
    assert (sam.coco[0], small.coco[0], sam.lvis[0], small.lvis[0]) == (46.5, 44.4, 44.7, 42.3)
    assert tiny.coco[0] - mobile.coco[0] == pytest.approx(3.6)
    assert tiny.lvis[0] - mobile.lvis[0] == pytest.approx(5.5)


def test_samis_classifiers_beat_maes_by_a_point_or_more() -> None:
    top1 = published.TASKS["classification", "top1"].rows
    gains = [top1[f"SAMI-{size}"] - top1[f"MAE-{size}"] for size in ("Ti", "S", "B")]
    assert gains == pytest.approx([1.6, 1.2, 1.2])


@pytest.mark.parametrize(
    ("protocol", "gains"),
    [("detection_boxes", [6.8, 4.5, 0.9]), ("detection_masks", [5.1, 3.4, 0.6])],
)
def test_samis_detectors_beat_maes_by_more_the_smaller_they_are(
    protocol: str, gains: list[float]
) -> None:
    ap = published.TASKS[protocol, "ap"].rows
    gained = [ap[f"SAMI-{size}"] - ap[f"MAE-{size}"] for size in ("Ti", "S", "B")]
    assert gained == pytest.approx(gains)


def test_only_sams_ap_has_a_second_pass() -> None:
    assert [one.model for one in published.AP if one.second_pass] == ["SAM-H"]
    assert not any(one.second_pass for one in published.MIOU)


def test_pretraining_with_sam_beats_its_control_everywhere() -> None:
    """SAMI over MAE after the same finetuning: 0.5 to 2.2 points."""
    sami, mae = row(published.MIOU, "EfficientSAM-Ti"), row(published.MIOU, "SAM-MAE-Ti")
    for kind in published.DATA:
        gains = [a - b for a, b in zip(sami.values(kind), mae.values(kind), strict=True)]
        assert min(gains) >= 0.45
        assert max(gains) <= 2.25
