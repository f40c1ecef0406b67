import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.visualization.curves import loss_curve, running_median, spread
from efficientsam_pl.visualization.palette import MASK_COLOURS, MUTED


def pixels_of(path: Path, colour: tuple[int, int, int]) -> int:
    return int((np.array(Image.open(path).convert("RGB")) == colour).all(-1).sum())


def test_curve_and_baseline_are_drawn_in_their_colours(tmp_path: Path) -> None:
    plain, compared = tmp_path / "plain.png", tmp_path / "compared.png"
    steps, losses = list(range(100)), {"loss": [1 / (1 + i) for i in range(100)]}
    loss_curve(plain, "loss", steps, losses, {})
    loss_curve(compared, "loss", steps, losses, {"mean feature": 0.8})
    assert pixels_of(plain, MASK_COLOURS[0]) > 1000
    assert pixels_of(compared, MUTED) > pixels_of(plain, MUTED) + 500


def test_labels_at_the_right_edge_are_not_cut_off(tmp_path: Path) -> None:
    loss_curve(
        tmp_path / "a.png", "t", [0, 1], {"a name of some length for a loss": [1.0, 0.5]}, {}
    )
    picture = np.array(Image.open(tmp_path / "a.png").convert("RGB"))
    assert (picture[:, -8:] == 255).all()


@pytest.mark.parametrize(
    "losses", [[], [1.0], [2.0, 2.0], [float("nan"), float("inf"), 0.5], [float("nan")] * 3]
)
def test_short_flat_and_broken_losses_are_drawn_without_a_warning(
    tmp_path: Path, losses: list[float]
) -> None:
    loss_curve(tmp_path / "a.png", "t", list(range(len(losses))), {"loss": losses}, {"b": 0.5})
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1200, 675)


def test_running_median_ignores_a_spike_and_a_gap() -> None:
    values = np.full(80, 3.0)  # windows reach two to each side
    values[40], values[10] = 1000.0, np.nan
    np.testing.assert_array_equal(running_median(values, np.arange(80)), np.full(80, 3.0))


def test_running_median_of_a_ramp_by_hand() -> None:
    smooth = running_median(np.arange(80.0), np.array([0, 1, 40, 79]))
    # windows 0..2, 0..3, 38..42, 77..79
    np.testing.assert_array_equal(smooth, [1.0, 1.5, 40.0, 78.0])


def test_spread_moves_close_labels_apart_evenly_and_leaves_the_others() -> None:
    assert spread([0.5, 0.9, 0.5], 0.1) == pytest.approx([0.45, 0.9, 0.55])
    assert spread([], 0.1) == []


def test_spread_keeps_every_gap_and_the_order() -> None:
    wanted = np.random.default_rng(0).uniform(0, 1, 9).tolist()
    placed = np.array(spread(wanted, 0.05))[np.argsort(wanted)]
    assert np.diff(placed).min() >= 0.05 - 1e-9


def test_loss_of_another_length_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loss: 2 values for 3 steps"):
        loss_curve(tmp_path / "a.png", "t", [0, 1, 2], {"loss": [1.0, 2.0]}, {})
    assert list(tmp_path.iterdir()) == []


def test_drawing_leaves_pyplot_and_its_settings_alone(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from efficientsam_pl.visualization.curves import loss_curve
assert "matplotlib" not in sys.modules
import matplotlib
before = matplotlib.rcParams.copy()  # dict() would choose a backend
loss_curve(Path({str(tmp_path / "a.png")!r}), "t", [0, 1], {{"loss": [1.0, 0.5]}}, {{}})
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
"""
    subprocess.run([sys.executable, "-c", program], check=True)
