"""`efficientsam figure` as a user runs it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from efficientsam_pl import rle
from efficientsam_pl.cli import main as cli
from efficientsam_pl.commands.figure.command import Column, FigureOptions, run
from efficientsam_pl.commands.figure.spec import FigureSpec, read_spec
from efficientsam_pl.export.consolidate import write_safetensors
from efficientsam_pl.inference.hub import load_model
from efficientsam_pl.inference.load import load_segmenter
from efficientsam_pl.inference.predictor import Predictor
from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.recipes import root_configs as configs

MODEL = """\
encoder: {width: 24, depth: 1, heads: 3, image_size: 64, position_grid: 4, neck_channels: 32}
decoder: {mlp_width: 32, iou_head_width: 32}
"""
HEIGHT, WIDTH = 48, 64
EVERYTHING = {
    "points_per_side": 2,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 2.0,
    "min_mask_region_area": 0,
}
GUIDE = Path(__file__).parents[2] / "docs/salient.md"


@dataclass(frozen=True)
class Folder:
    root: Path

    def spec(self, content: object, name: str = "figure.yaml") -> Path:
        text = json.dumps(content) if name.endswith("json") else yaml.safe_dump(content)
        (self.root / name).write_text(text)
        return self.root / name

    def command(self, spec: Path, *more: str, model: str | None = None) -> list[str]:
        column = model or f"Ours={self.root / 'tiny0.safetensors'}"
        out = ["--out", str(self.root / "f.png")]
        return ["figure", "--spec", str(spec), "--model", column, *out, *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = tmp_path_factory.mktemp("figure")
    (root / "tiny.yaml").write_text(MODEL)
    config = configs.load(SegmenterConfig, [str(root / "tiny.yaml")], [])
    for seed in (0, 1):
        torch.manual_seed(seed)
        state, model = load_segmenter(config, None).state_dict(), configs.as_dict(config)
        out = root / f"tiny{seed}.safetensors"
        write_safetensors(out, state, state.values(), model, {"stage": "test"})
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "photo.png")
    saliency = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    saliency[10:30, 10:40] = 255
    Image.fromarray(saliency).save(root / "map.png")
    return Folder(root)


def mistake(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    capfd.readouterr()
    assert cli.main(arguments) == 2
    [line] = capfd.readouterr().err.splitlines()
    return line


def single_image(**prompts: object) -> dict[str, object]:
    return {"photos": [{"image": "photo.png", **prompts}]}


def test_every_kind_of_prompts_is_a_row_and_every_model_a_column(
    folder: Folder, capfd: pytest.CaptureFixture[str]
) -> None:
    image = {
        "image": "photo.png",
        "points": [[20, 20], [50, 30.5]],
        "clicks": [[20, 20], [22, 24, 1]],
        "boxes": [[5, 5, 30, 30]],
        "everything": True,
        "saliency": "map.png",
    }
    content = {"photos": [image, {"image": "photo.png", "points": [[3, 3]]}]}
    spec = folder.spec({**content, "everything": EVERYTHING}, "figure.json")
    svg, pdf, png = (folder.root / f"all.{kind}" for kind in ("svg", "pdf", "png"))
    arguments = ["figure", "--spec", str(spec)]
    for seed, name in ((0, f"{folder.root / 'tiny.yaml'}:"), (1, "")):
        arguments += ["--model", f"Model {seed}={name}{folder.root / f'tiny{seed}.safetensors'}"]
    for out in (svg, pdf, png):
        arguments += ["--out", str(out)]
    assert cli.main(arguments) == 0
    printed = capfd.readouterr().out
    assert "Model 0: 6 rows" in printed
    assert printed.count("-> ") == 3
    letters = re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text())
    assert letters == [
        *("Input", "Model 0", "Model 1"),
        *("point", "clicks", "box", "everything", "saliency", "point"),
    ]
    with Image.open(png) as picture:
        assert picture.width > 3 * 420
        assert picture.height > 6 * 420 * HEIGHT / WIDTH


def test_rows_hold_the_predictors_masks(folder: Folder) -> None:
    spec = folder.spec(
        single_image(points=[[20, 20], [50, 30]], boxes=[[5, 5, 30, 30]], saliency="map.png")
    )
    weights = str(folder.root / "tiny1.safetensors")
    content = run(
        FigureOptions(
            spec=read_spec(spec),
            columns=(Column("Ours", None, weights),),
            out=(folder.root / "f.png",),
        )
    )
    image = np.array(Image.open(folder.root / "photo.png"))
    embedded = Predictor(load_model(None, weights)).embed(image)
    points, box, saliency = content.rows
    expected = embedded.predict(points=np.array([[[20, 20]], [[50, 30]]])).best().numpy()
    for mask, best in zip(points.predictions[0], expected, strict=True):
        np.testing.assert_array_equal(rle.decode(mask), best)
    [boxed] = embedded.predict(boxes=np.array([[5, 5, 30, 30]])).best().numpy()
    np.testing.assert_array_equal(rle.decode(box.predictions[0][0]), boxed)
    [clicks] = saliency.prompts
    inside = np.asarray(Image.open(folder.root / "map.png")) > 0
    assert all(inside[int(y), int(x)] for x, y in clicks.points_xy)
    assert len(clicks.points_xy) == 3
    [salient] = embedded.predict(points=np.array([clicks.points_xy])).best().numpy()
    np.testing.assert_array_equal(rle.decode(saliency.predictions[0][0]), salient)


def test_map_without_a_salient_region_is_reported_and_drawn(
    folder: Folder, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(folder.root / "dark.png")
    assert cli.main(folder.command(folder.spec(single_image(saliency="dark.png")))) == 0
    assert "dark.png: no region is salient enough" in capfd.readouterr().out


def test_the_guides_spec_is_valid(tmp_path: Path) -> None:
    [text] = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (tmp_path / "figure.yaml").write_text(text)
    spec = read_spec(tmp_path / "figure.yaml")
    assert isinstance(spec, FigureSpec)
    coffee, chelsea = spec.photos
    assert coffee.image == str(tmp_path / "coffee.png")
    assert len(coffee.points) == 2
    assert chelsea.everything
    assert spec.everything.candidates == "best"  # the notebook's, the default


def test_wrong_specs_are_one_line_with_the_key(
    folder: Folder, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder.root / "text.png").write_text("no map")
    cases = [
        ({"photos": []}, "photos= is empty"),
        ({"photo": []}, "unknown key photo; did you mean photos?"),
        (single_image(point=[[1, 2]]), "photos[0]: unknown key point; did you mean points?"),
        (single_image(), "photos[0].image=photo.png has no prompt"),
        (single_image(points=[[1, 2, 3]]), "photos[0].points=[1, 2, 3] must be 2 numbers"),
        (single_image(points=[["a", 2]]), "photos[0].points=['a', 2] must be 2 numbers"),
        (single_image(points=[[float("nan"), 2]]), "photos[0].points=[nan, 2] must be 2 numbers"),
        (single_image(clicks=[[1, 2, 7]]), "photos[0].clicks=[1, 2, 7]: the label must be 0 or 1"),
        (single_image(clicks=[[1, 2, 0]]), "Ours, "),  # this model does not support negative clicks
        (single_image(boxes=[[1, 2, 3]]), "photos[0].boxes=[1, 2, 3] must be 4 numbers"),
        (single_image(boxes=[[30, 2, 3, 20]]), "a box must be x0,y0,x1,y1"),
        (single_image(points=[[1, 200]]), "(1, 200) lies outside the image of 64 x 48 pixels"),
        (single_image(saliency="gone.png"), "saliency: no such file"),
        (single_image(saliency="text.png"), "cannot be read as a saliency map"),
        ({"photos": [{"image": "gone.png", "everything": True}]}, "no such file"),
        (
            {**single_image(everything=True), "everything": {"points": 3}},
            "unknown key everything.points",
        ),
        ({**single_image(everything=True), "salient": {"threshold": 2}}, "salient.threshold=2"),
    ]
    for content, message in cases:
        assert message in mistake(capfd, folder.command(folder.spec(content))), content
    assert "no such config file" in mistake(capfd, folder.command(folder.root / "gone.yaml"))


def test_wrong_options_are_one_line(folder: Folder, capfd: pytest.CaptureFixture[str]) -> None:
    spec, weights = folder.spec(single_image(points=[[1, 2]])), folder.root / "tiny0.safetensors"
    for model, message in (
        (str(weights), "is not of the form TITLE=[NAME:]WEIGHTS"),
        ("Ours=", "is not of the form TITLE=[NAME:]WEIGHTS"),
        (f"Ours=:{weights}", "is not of the form TITLE=[NAME:]WEIGHTS"),
        ("Ours=gone.safetensors", "no such file: gone.safetensors"),
        (f"Ours=no_model:{weights}", "unknown model 'no_model'"),
    ):
        assert message in mistake(capfd, folder.command(spec, model=model)), model
    twice = ["--model", f"Ours={weights}"]
    assert "two columns are called 'Ours'" in mistake(capfd, folder.command(spec, *twice))
    line = mistake(capfd, folder.command(spec, "--out", "f.jpg"))
    assert "--out: f.jpg must end in .png, .svg or .pdf" in line
