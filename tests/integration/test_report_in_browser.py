"""The quickstart's report as a browser shows it, on a desk and on a telephone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.visualization.report import (
    Command,
    Figure,
    Report,
    Section,
    Table,
    write_report,
)

selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="chromium and chromedriver are not installed"
)
SIZES = {"desk": (1280, 900), "telephone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator["selenium.Chrome"]:
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking",
                 "disable-component-update", "disable-sync", "no-first-run"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options, selenium.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    for name, size in (("wide", (1072, 640)), ("narrow", (546, 1200))):
        pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    wide = Figure(folder / "wide.png", "What is shown " * 8, narrow=folder / "narrow.png")
    columns = ("mIoU", "trained", "filled box", "reachable", "filled box in the grid", "untrained")
    rows = tuple(("box, medium, under 96² pixels (305)", *["0.123"] * 5) for _ in range(5))
    table = Table(columns, rows, highlight=0)
    command = Command("Again:", "efficientsam finetune -c a/very/long/path/" + "x" * 200)
    section = Section("Stage", "Text.", (table,), (wide,), (command,))
    path = folder / "report.html"
    write_report(path, Report("A title", "A summary.", ("A note.",), (section,), wide, (table,)))
    return path


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_page_loads_alone_and_fits_the_screen(
    browser: "selenium.Chrome", page: Path, size: tuple[int, int]
) -> None:
    width, height = size
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.get_log("performance")
    browser.get(page.as_uri())
    assert browser.execute_script("return window.innerWidth") == width
    assert browser.get_log("browser") == []
    requested = [entry["message"] for entry in browser.get_log("performance")]
    addresses = [m for m in requested if '"Network.requestWillBeSent"' in m]
    assert all('"url":"file://' in m or '"url":"data:' in m for m in addresses)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    loaded = "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    assert browser.execute_script(loaded)


def test_picture_and_table_share_the_first_screen_of_a_desk(
    browser: "selenium.Chrome", page: Path
) -> None:
    width, height = SIZES["desk"]
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get(page.as_uri())
    bottom = "return document.querySelector('header table').getBoundingClientRect().bottom"
    assert browser.execute_script(bottom) <= height


def test_a_telephone_gets_the_narrow_picture(browser: "selenium.Chrome", page: Path) -> None:
    shown = "return document.querySelector('.hero img').naturalWidth"
    for (width, height), natural in ((SIZES["desk"], 1072), (SIZES["telephone"], 546)):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        browser.get(page.as_uri())
        assert browser.execute_script(shown) == natural
