"""Tables of results: what stands where, and what may not stand together."""

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from efficientsam_pl.commands.compare import fitting_tables
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.results.columns import Column
from efficientsam_pl.evaluation.results.comparison import Comparison, compare, markdown
from efficientsam_pl.evaluation.results.result_file import Result

BOX = Column("coco", "box", "miou")
AP = Column("coco", "detector_boxes", "ap")


def means(value: float) -> dict[str, float | None]:
    return {"all": value, "small": value, "medium": None, "large": value}


def result(name: str = "ours", box: float = 0.5, kind: str = "coco", **changed: Any) -> Result:
    made = Result(
        model={"name": name, "weights_sha256": f"{name:0<64}", "resize": "squash 1024"},
        data={
            "kind": kind,
            "photos": 5000,
            "sha256": f"{kind:0<64}",
            "images_sha256": f"{kind:1<64}",
        },
        seed=0,
        protocols={"box": {"description": "tight", "source": "P", "mask_rule": "predicted_iou"}},
        numbers={"box": {"miou": means(box), "filled_box_miou": means(0.6)}},
        counts={"photos": 5000, "instances": 36_335},
    )
    return replace(made, **changed)


def with_ap(of: Result, ap: float, rule: str = "box_iou", second: bool = False) -> Result:
    told = {"mask_rule": rule, "second_pass": second, "detector_sha256": "d" * 64}
    numbers = {"ap": ap, "ap_small": ap / 2, "ap_medium": ap, "ap_large": -1.0, "ar1": 0.9}
    return replace(
        of,
        protocols=of.protocols | {"detector_boxes": told},
        numbers=of.numbers | {"detector_boxes": {"ap": numbers}},
    )


def table(*results: Result, paper: bool = True) -> Comparison:
    return compare([f"{place}.json" for place in range(len(results))], results, paper)


def cells(made: Comparison, column: Column) -> dict[str, float]:
    return {row.name: row.cells[column] for row in made.rows if column in row.cells}


def test_ours_stand_above_the_filled_box_and_the_papers_rows() -> None:
    found = cells(table(result("a", 0.5), result("b", 0.75)), BOX)
    assert list(found.items())[:4] == [
        ("a a0000000, squash 1024", 50.0),
        ("b b0000000, squash 1024", 75.0),
        ("filled box", 60.0),
        ("SAM-H", 78.4),
    ]
    assert found["EfficientSAM-Ti"] == 75.7


def test_what_mask_grids_allow_has_rows_of_its_own_and_old_results_have_none() -> None:
    grid = {"filled_box_grid_miou": means(0.55), "reachable_miou": means(0.9)}
    known = result("a", numbers={"box": {"miou": means(0.5), "filled_box_miou": means(0.6)} | grid})
    old = result("b", 0.7)
    found = cells(table(known, old, paper=False), BOX)
    assert found == {
        "a a0000000, squash 1024": 50.0,
        "b b0000000, squash 1024": pytest.approx(70.0),
        "filled box": 60.0,
        "filled box via mask grid, squash 1024": pytest.approx(55.0),
        "reachable by mask grid, squash 1024": 90.0,
    }


def test_one_model_on_two_sets_is_one_row_as_in_the_paper() -> None:
    made = table(result(box=0.5), result(box=0.25, kind="lvis"))
    assert [column.title() for column in made.columns] == ["COCO box", "LVIS box"]
    assert list(made.rows[0].cells.values()) == [50.0, 25.0]
    [tiny] = [row for row in made.rows if row.name == "EfficientSAM-Ti"]
    assert list(tiny.cells.values()) == [75.7, 74.3]


def test_table_is_whole_where_it_fits_and_in_parts_of_80_columns_elsewhere() -> None:
    protocols = ("box", "click_random_1", "click_random_3")
    terms = {"description": "", "source": "P", "mask_rule": "predicted_iou"}
    shown = {"miou": means(0.5), "filled_box_miou": means(0.6)}
    made = table(
        *(
            with_ap(
                result(
                    name,
                    kind=kind,
                    protocols=dict.fromkeys(protocols, terms),
                    numbers=dict.fromkeys(protocols, shown),
                ),
                0.25,
            )
            for name in ("efficient_sam_ti_interactive", "b")
            for kind in ("coco", "lvis")
        )
    )
    assert len(made.columns) == 12
    for width, parts in ((300, 1), (80, 2)):
        printed = io.StringIO()
        console = Console(width=width, file=printed)
        shown = list(fitting_tables(made, width))
        assert len(shown) == parts
        for one in shown:
            console.print(one)
        text = printed.getvalue()
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        for word in ("click", "random_3", "AP M", "SAM-H", "EfficientSAM-Ti"):
            assert word in text.replace("\u00a0", " ")
        numbers = [float(word) for word in text.split() if re.fullmatch(r"\d+\.\d", word)]
        values = [round(value, 1) for row in made.rows for value in row.cells.values()]
        assert sorted(numbers) == sorted(values)


def test_two_results_of_one_model_are_told_by_their_files() -> None:
    made = table(result(box=0.5), result(box=0.52, seed=1), paper=False)
    assert [row.name for row in made.rows] == [
        "ours ours0000, squash 1024 (0.json)",
        "ours ours0000, squash 1024 (1.json)",
        "filled box",
    ]
    assert made.notes[-1] == "Clicks are drawn from several seeds: 0.json 0, 1.json 1."


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            result(data={"kind": "coco", "photos": 79, "sha256": "e" * 64}),
            "data 5000 photos, sha256 coco00000000, 1.json has 5000 photos, sha256 eeeeeeeeeeee",
        ),
        (
            result(counts={"photos": 4999, "instances": 1}),
            "data 5000 photos, sha256 coco00000000, 1.json has 4999 photos, sha256 coco00000000",
        ),
        (
            result(protocols={"box": {"mask_rule": "token_0"}}),
            "mask_rule predicted_iou, 1.json has token_0",
        ),
    ],
)
def test_results_made_otherwise_are_refused_one_column(other: Result, told: str) -> None:
    with pytest.raises(UserError) as caught:
        table(result(), other)
    assert str(caught.value) == f"COCO box: 0.json has {told}; they cannot stand in one column"


def without_hash(of: Result) -> Result:
    return replace(of, data={k: v for k, v in of.data.items() if k != "images_sha256"})


def test_other_images_under_the_same_annotations_are_refused_one_column() -> None:
    inverted = result("b", data=result().data | {"images_sha256": "e" * 64})
    message = "COCO box: 0.json has images sha256 coco11111111, 1.json has sha256 eeeeeeeeeeee"
    with pytest.raises(UserError, match=message):
        table(result("a"), inverted)
    with pytest.raises(UserError, match=message.replace("1.json", "2.json")):
        table(result("a"), without_hash(result("c")), inverted)


def test_results_without_hashes_of_images_are_compared_with_a_note() -> None:
    note = "No hash of the images is in 1.json, of an earlier version: "
    made = table(result("a"), without_hash(result("b")))
    assert cells(made, BOX).keys() >= {"a a0000000, squash 1024", "b b0000000, squash 1024"}
    assert [one for one in made.notes if one.startswith(note)]
    alone = table(without_hash(result("b")), result("a", kind="lvis"))
    assert not any("hash" in one for one in alone.notes)


@pytest.mark.parametrize(
    ("rule", "second", "told"),
    [
        ("predicted_iou", False, "mask_rule box_iou, 1.json has predicted_iou"),
        ("box_iou", True, "second_pass False, 1.json has True"),
    ],
)
def test_other_detector_rules_are_refused_one_column(rule: str, second: bool, told: str) -> None:
    with pytest.raises(UserError, match=f"COCO AP: 0.json has {told}"):
        table(with_ap(result("a"), 0.4), with_ap(result("b"), 0.4, rule, second))


def test_a_refusal_looks_at_every_pair() -> None:
    baseline = result("filled box", 0.6, model={"name": "filled box", "baseline": "filled_box"})
    table(baseline, result())
    with pytest.raises(UserError, match=r"has mask_rule predicted_iou, .* has token_0"):
        table(baseline, result(), result("b", protocols={"box": {"mask_rule": "token_0"}}))


def test_results_of_other_columns_may_differ() -> None:
    centre = result(
        protocols={"click_center": {"mask_rule": "token_0"}},
        numbers={"click_center": {"miou": means(0.4)}},
    )
    made = table(result(), centre, paper=False)
    assert [column.title() for column in made.columns] == ["COCO box", "COCO click_center"]


def test_papers_ap_stands_only_where_it_was_made_alike() -> None:
    plain = table(with_ap(result(), 0.4))
    assert "SAM-H" not in cells(plain, AP)
    assert cells(plain, AP)["EfficientSAM-S"] == 44.4
    [why] = [note for note in plain.notes if "second pass" in note]
    assert why.startswith("The paper's SAM-H stands in no column with COCO AP 46.5, COCO AP S 30.8")
    again = cells(table(with_ap(result(), 0.4, second=True)), AP)
    assert (again["SAM-H"], "EfficientSAM-S" in again) == (46.5, False)
    other = cells(table(with_ap(result(), 0.4, rule="predicted_iou")), AP)
    assert list(other) == ["ours ours0000, squash 1024"]


def test_numbers_that_are_no_number_leave_the_cell_out() -> None:
    made = table(with_ap(result(), 0.4), paper=False)
    assert Column("coco", "detector_boxes", "ap_large") not in made.columns
    nothing = result(numbers={"box": {"miou": {"all": None}, "filled_box_miou": {"all": None}}})
    assert table(nothing, paper=False).columns == ()


def test_shards_have_no_rows_of_the_paper() -> None:
    made = table(result(kind="shards"))
    assert [row.name for row in made.rows] == ["ours ours0000, squash 1024", "filled box"]


def test_markdown_is_a_table_whose_paper_rows_are_slanted() -> None:
    lines = markdown(table(result(box=0.1234))).splitlines()
    assert lines[:3] == [
        "| model | COCO box |",
        "| --- | ---: |",
        "| ours ours0000, squash 1024 | 12.3 |",
    ]
    assert "| *SAM-H* | 78.4 |" in lines
    assert any(line.startswith("- Rows of the paper: EfficientSAM, arXiv") for line in lines)
    assert "- Our rows on COCO: 5,000 photos, 36,335 instances." in lines


def test_table_without_the_paper_does_not_name_it() -> None:
    assert "paper" not in markdown(table(result(), paper=False))
