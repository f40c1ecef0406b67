import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.visualization.report import Figure, Report, Section, Table, write_report

NASTY = '<script>alert("x")</script> & <b>'


class Page(HTMLParser):
    """Tags with their attributes and the text between them, as a browser sees them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag in {"td", "th"} and data.strip():
            self.cells.append((data, (attributes["class"] or "").strip()))


def written(tmp_path: Path, *sections: Section) -> str:
    report = Report("A title", "First.\n\nSecond.", ("mind this",), sections)
    write_report(tmp_path / "report.html", report)
    return (tmp_path / "report.html").read_text("utf-8")


def noise_png(path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    png = noise_png(tmp_path / "a.png")
    html = written(tmp_path, Section("s", "t", pictures=(Figure(png, "noise"),)))
    for outside in ("http://", "https://", "<script", "<link", "url(", "@import"):
        assert outside not in html
    for tag, attributes in Page(html).tags:
        assert set(attributes) <= {"lang", "charset", "name", "content", "http-equiv", "class",
                                   "scope", "src", "alt"}, tag  # fmt: skip


def test_picture_in_the_page_is_the_file_to_the_byte(tmp_path: Path) -> None:
    png = noise_png(tmp_path / "a.png")
    html = written(tmp_path, Section("s", "t", pictures=(Figure(png, "noise & more"),)))
    (image,) = [attributes for tag, attributes in Page(html).tags if tag == "img"]
    kind, content = (image["src"] or "").split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content, validate=True) == png.read_bytes()
    assert image["alt"] == "noise & more"


def test_text_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    table = Table((NASTY,), ((NASTY,),), caption=NASTY)
    picture = Figure(noise_png(tmp_path / "a.png"), '" onload="alert(1)')
    section = Section(NASTY, NASTY, (table,), (picture,))
    write_report(tmp_path / "r.html", Report(NASTY, NASTY, (NASTY,), (section,)))
    page = Page((tmp_path / "r.html").read_text("utf-8"))
    assert {"script", "b"}.isdisjoint(tag for tag, _ in page.tags)
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert page.text.count(NASTY) == 9  # title twice, summary, note, section 2, table 3


def test_columns_of_numbers_and_verdicts_are_distinguished_from_text(tmp_path: Path) -> None:
    table = Table(
        ("name", "IoU", "time", "better?", "remark"),
        (("ti", "0.743", "3.1 ± 0.2 ms", "✓", "✓ good"), ("s", "-", "1,204 s", "✗", "12 masks")),
    )
    classes = [table.alignment(i) for i in range(5)]
    assert classes == ["text", "number", "number", "verdict", "text"]
    cells = dict(Page(written(tmp_path, Section("s", "t", (table,)))).cells)
    assert cells["0.743"] == cells["IoU"] == "number"
    assert cells["✓"] == "verdict good"
    assert cells["✗"] == "verdict bad"
    assert cells["✓ good"] == "text good"


@pytest.mark.parametrize(
    "cell",
    ["12", "-0.5", "\N{MINUS SIGN}0.5", "+3 %", "1e-4", "1,204", "1 204", "0.31/0.74", "24 img/s",
     "9.8 GB", "<1", "✓ 0.9", "2.0x"],
)  # fmt: skip
def test_these_are_numbers(cell: str) -> None:
    assert Table(("a",), ((cell,),)).alignment(0) == "number"


@pytest.mark.parametrize(
    "cell", ["ViT-S", "3 clicks", "1024 x 1024", "a 1", "", "\N{EN DASH}", "2026-01-31b"]
)
def test_these_are_not_numbers(cell: str) -> None:
    assert Table(("a",), ((cell,),)).alignment(0) == "text"


def test_only_the_stressed_row_is_stressed(tmp_path: Path) -> None:
    table = Table(("a",), (("x",), ("y",), ("z",)), highlight=1)
    html = written(tmp_path, Section("s", "t", (table,)))
    assert re.findall(r'<tr class="highlight">\s*<td class="text ">(.)', html) == ["y"]


def test_empty_lines_part_paragraphs(tmp_path: Path) -> None:
    html = written(tmp_path, Section("s", "one\nstill one\n\ntwo\n"))
    assert "<p>one\nstill one</p>" in html
    assert "<p>two</p>" in html
    assert html.count('<p class="summary">') == 2


def test_wrong_tables_and_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 1 has 1 cells for 2 columns"):
        Table(("a", "b"), (("1", "2"), ("3",)))
    with pytest.raises(ValueError, match="highlight=2, but there are 2 rows"):
        Table(("a",), (("1",), ("2",)), highlight=2)
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=r"a\.jpg is not a PNG"):
        Figure(tmp_path / "a.jpg", "").data_uri()
