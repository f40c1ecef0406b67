"""A folder of images as a source of the quickstart."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from efficientsam_pl.commands.quickstart.config import QuickstartConfig
from efficientsam_pl.commands.quickstart.sources import folder_images


def test_images_of_a_folder_are_read_upright_and_everything_else_is_named(
    tmp_path: Path, tagged: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.zeros((40, 64, 3), dtype=np.uint8)
    image[:16, :24] = [200, 30, 30]
    (tmp_path / "below").mkdir()
    (tmp_path / "turned.TIF").write_bytes(tagged(image, 6, "TIFF"))
    (tmp_path / "below" / "plain.webp").write_bytes(tagged(255 - image, 1, "WEBP"))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "broken.gif").write_bytes(b"no image")
    source = folder_images(tmp_path, QuickstartConfig())
    images = [image for split in source.splits.values() for image in split]
    pixels = {one.key: one.image for one in images}
    assert pixels.keys() == {"turned", "plain"}
    np.testing.assert_array_equal(pixels["turned"], image)
    np.testing.assert_array_equal(pixels["plain"], 255 - image)
    [skipped] = source.skipped
    assert "broken.gif" in skipped
    assert capsys.readouterr().out.splitlines() == [
        "skipped: 1 other file (notes.txt)",
        "1 image carries an EXIF rotation: 1 turned upright",
    ]
