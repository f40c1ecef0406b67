import xml.etree.ElementTree as ET
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.visualization.evaluation_plots import iou_histogram, precision_recall
from efficientsam_pl.visualization.palette import mask_colour
from efficientsam_pl.visualization.vector import Plot

THRESHOLDS = np.arange(0.5, 1, 0.05)
RECALLS = np.linspace(0, 1, 101)


def texts(plot: Plot) -> list[str]:
    elements = ET.fromstring(plot.svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(text.itertext()) for text in elements]


def pixels(plot: Plot) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(plot.png)).convert("RGB"))


def test_ap_beside_each_threshold_is_the_mean_precision_of_known_categories() -> None:
    precision = np.zeros((3, 10, 101))
    precision[0, 0] = 1.0
    precision[1, 0, :51] = 1.0  # 51 of 101 recalls
    precision[2] = -1.0  # without an object
    labels = texts(precision_recall("boxes", precision, THRESHOLDS, RECALLS))
    at_half = (1 + 51 / 101) / 2
    assert {"boxes", "recall", "precision", "0.50", "0.95"} <= set(labels)
    assert labels[labels.index("0.50") + 1] == f"{at_half:.3f}"
    assert labels[labels.index("0.95") + 1] == "0.000"
    assert labels[labels.index("mean") + 1] == f"{at_half / 10:.3f}"


def test_curve_runs_where_precision_is() -> None:
    precision = np.full((1, 1, 101), 0.5)
    page = pixels(precision_recall("p", precision, THRESHOLDS[:1], RECALLS))
    ink = (page == (18, 58, 128)).all(-1)
    rows = np.flatnonzero(ink[:, 400:600].all(axis=1))
    height = page.shape[0]
    top, bottom = height * (1 - 0.125 - 0.765), height * (1 - 0.125)
    wanted = bottom - 0.5 / 1.02 * (bottom - top)
    assert abs(rows.mean() - wanted) < 2


def test_shares_of_a_histogram_add_up_and_means_are_labelled() -> None:
    plot = iou_histogram("IoU", {"box": np.array([0.0, 0.5, 1.0, 1.0]), "click": np.array([0.3])})
    labels = texts(plot)
    assert "box:  mean 0.625, 4 masks" in labels
    assert "click:  mean 0.300, 1 mask" in labels
    assert "100" in labels  # per cent: the click's only bar


def test_bar_stands_over_its_iou() -> None:
    page = pixels(iou_histogram("IoU", {"box": np.full(9, 0.72)}))
    ink = (page == mask_colour(0)).all(-1)
    columns = np.flatnonzero(ink[page.shape[0] // 2])
    left, width = 0.095 * page.shape[1], 0.875 * page.shape[1]
    edges = (columns[[0, -1]] - left) / width
    np.testing.assert_allclose(edges, [0.70, 0.75], atol=0.004)


@pytest.mark.parametrize(
    "plot",
    [
        iou_histogram("nothing", {}),
        iou_histogram("nothing", {"box": np.zeros(0)}),
        precision_recall("nothing", np.full((2, 10, 101), -1.0), THRESHOLDS, RECALLS),
        precision_recall("nothing", np.zeros((0, 10, 101)), THRESHOLDS, RECALLS),
    ],
)
def test_nothing_is_said_to_be_nothing(plot: Plot) -> None:
    assert {"no masks", "no objects"} & set(texts(plot))


def test_both_forms_are_written_and_nothing_is_cut_off(tmp_path: Path) -> None:
    precision = np.ones((1, 10, 101))
    for name, plot in (
        ("pr", precision_recall("p", precision, THRESHOLDS, RECALLS)),
        ("iou.v1", iou_histogram("i", {f"set {i}": np.full(3, i / 7) for i in range(7)})),
    ):
        png, svg = plot.write(tmp_path / name)
        assert (png.name, svg.name) == (f"{name}.png", f"{name}.svg")
        page = pixels(plot)
        for border in (page[:4], page[-4:], page[:, :4], page[:, -4:]):
            assert (border == 255).all()
    assert (
        precision_recall("p", precision, THRESHOLDS, RECALLS).svg
        == (tmp_path / "pr.svg").read_bytes()
    )


@pytest.mark.parametrize("wrong", [[1.5], [-0.1], [float("nan")]])
def test_iou_outside_its_range_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match=r"box: IoU outside \[0, 1\]"):
        iou_histogram("IoU", {"box": np.array(wrong)})
