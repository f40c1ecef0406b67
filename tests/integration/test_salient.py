"""`efficientsam salient` as a user runs it, and the Python code of the guide."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from efficientsam_pl import rle
from efficientsam_pl.cli import main as cli
from efficientsam_pl.inference.hub import load_model

if TYPE_CHECKING:
    from tests.integration.conftest import InProcess

HEIGHT, WIDTH = 48, 64
GUIDE = Path(__file__).parents[2] / "docs/salient.md"


@dataclass(frozen=True)
class Folders:
    """Three images: two objects, none salient, and one whose map is half its size."""

    root: Path

    @property
    def weights(self) -> Path:
        return self.root / "tiny.safetensors"

    def options(self, **changes: object) -> list[str]:
        named: dict[str, object] = {
            "weights": self.weights,
            "image": self.root / "photos",
            "saliency": self.root / "maps",
            "out": self.root / "out",
            **changes,
        }
        return ["salient", *(str(p) for k, v in named.items() for p in (f"--{k}", v))]


def save(path: Path, grey: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(grey).save(path)


@pytest.fixture
def folders(tmp_path: Path, write_model: Callable[..., Path]) -> Folders:
    write_model(tmp_path / "tiny.safetensors")
    draw = np.random.default_rng(0)
    for name in ("boat", "empty", "half"):
        pixels = draw.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        save(tmp_path / "photos" / f"{name}.png", pixels)
    two = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    two[4:20, 4:20], two[30:45, 30:60] = 255, 200
    save(tmp_path / "maps/boat.png", two)
    save(tmp_path / "maps/empty.png", np.zeros_like(two))
    save(tmp_path / "maps/half.png", two[::2, ::2])
    for name in ("boat", "empty", "half"):
        save(tmp_path / f"truth/{name}.png", (two > 128).astype(np.uint8) * 255)
    return Folders(tmp_path)


def test_folder_is_segmented_scored_and_counted(
    folders: Folders, capfd: pytest.CaptureFixture[str]
) -> None:
    json_file = folders.root / "salient.json"
    assert cli.main(folders.options(truth=folders.root / "truth", json=json_file)) == 0
    out = capfd.readouterr().out
    assert "no region is salient enough: 1 (empty.png)" in out
    assert "map of another size than its image, resized: 1 (half.png)" in out
    assert "3 images with ground truth" in out
    result = json.loads(json_file.read_text())
    assert [len(record["instances"]) for record in result["photos"]] == [2, 0, 2]
    assert result["counts"]["without_instance"] == ["empty.png"]
    assert result["counts"]["map_resized"] == ["half.png"]
    assert result["counts"]["scored"] == 3
    boat = result["photos"][0]
    assert boat["scores"]["saliency maps"]["f_adaptive"] == pytest.approx(1.0)
    # 450 of 3072 pixels at 200 of 255
    assert boat["scores"]["saliency maps"]["mae"] == pytest.approx(450 * 55 / 255 / 3072)
    union = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for instance in boat["instances"]:
        union |= rle.decode(instance["segmentation"])
        assert instance["area"] == rle.area(instance["segmentation"])
    written = np.asarray(Image.open(folders.root / "out/masks/boat.png"))
    np.testing.assert_array_equal(written, union * np.uint8(255))
    truth = np.asarray(Image.open(folders.root / "truth/boat.png")) > 128
    assert boat["scores"]["masks"]["mae"] == pytest.approx((union != truth).mean())
    assert not np.asarray(Image.open(folders.root / "out/masks/empty.png")).any()
    with Image.open(folders.root / "out/overlays/boat.png") as drawn:
        assert drawn.size == (WIDTH, HEIGHT)


def test_same_seed_gives_the_same_files_and_another_seed_other_clicks(folders: Folders) -> None:
    files = [folders.root / f"{i}.json" for i in range(3)]
    for path, seed in zip(files, (0, 0, 5), strict=True):
        assert cli.main(folders.options(json=path, seed=seed)) == 0
    first, again, other = (json.loads(path.read_text())["photos"] for path in files)
    assert first == again
    clicks, others = (p[0]["instances"][0]["point_coords"] for p in (first, other))
    assert len(clicks) == 3
    assert clicks != others


def test_image_alone_gives_what_it_gives_in_its_folder(folders: Folders) -> None:
    both = [folders.root / "all.json", folders.root / "one.json"]
    single = {"image": folders.root / "photos/boat.png", "saliency": folders.root / "maps/boat.png"}
    assert cli.main(folders.options(json=both[0])) == 0
    assert cli.main(folders.options(json=both[1], **single)) == 0
    everything, alone = (json.loads(path.read_text())["photos"] for path in both)
    assert alone == everything[:1]


def test_maps_of_sixteen_bits_and_arrays_are_read(folders: Folders) -> None:
    json_file, maps = folders.root / "a.json", folders.root / "maps"
    grey = np.asarray(Image.open(maps / "boat.png"))
    (maps / "boat.png").unlink()
    np.save(maps / "boat.npy", (grey / 255).astype(np.float32))
    Image.fromarray(grey.astype(np.uint16) * 257).save(maps / "empty.png")
    assert cli.main(folders.options(json=json_file)) == 0
    records = json.loads(json_file.read_text())["photos"]
    regions = [[i["region_area"] for i in record["instances"]] for record in records]
    assert regions[:2] == [[450, 256], [450, 256]]


def test_a_corrupt_file_in_a_folder_is_skipped_and_counted(
    folders: Folders, capfd: pytest.CaptureFixture[str]
) -> None:
    json_file = folders.root / "a.json"
    (folders.root / "maps/boat.png").write_bytes(b"no picture")
    (folders.root / "maps/empty.png").unlink()
    save(folders.root / "photos/more.png", np.zeros((10, 10, 3), dtype=np.uint8))
    np.save(folders.root / "maps/more.npy", np.full((10, 10), np.nan))
    assert cli.main(folders.options(json=json_file)) == 0
    out = capfd.readouterr().out
    assert "photo without a saliency map: 1 (empty.png)" in out
    assert "photo that could not be used: 2 (boat.png: --saliency: " in out
    assert "must lie in [0, 1], not in [nan, nan]" in out
    skipped = json.loads(json_file.read_text())["counts"]["skipped"]
    assert [len(names) for names in skipped.values()] == [1, 2]


def test_truth_of_another_size_is_reported_and_missing_truth_only_not_scored(
    folders: Folders, capfd: pytest.CaptureFixture[str]
) -> None:
    truth = folders.root / "truth"
    save(truth / "half.png", np.zeros((5, 7), dtype=np.uint8))
    (truth / "empty.png").unlink()
    assert cli.main(folders.options(truth=truth)) == 0
    out = capfd.readouterr().out
    assert "half.png is 7 x 5, its image 64 x 48 pixels" in out
    assert "photo without ground truth (not scored): 1 (empty.png)" in out
    assert "1 image with ground truth" in out


def test_images_are_read_upright_and_other_files_named(
    folders: Folders, tagged: Callable[..., bytes], here: "InProcess"
) -> None:
    masks = {}
    for name in ("plain", "tagged"):
        printed = here.done(*folders.options(out=folders.root / name))
        assert ("1 image carries an EXIF rotation: 1 turned upright" in printed) == (
            name == "tagged"
        )
        assert ("skipped: 1 other file (a.heic), 1 folder (old/)" in printed) == (name == "tagged")
        masks[name] = (folders.root / name / "masks/boat.png").read_bytes()
        with Image.open(folders.root / "photos/boat.png") as image:
            upright = np.array(image)
        (folders.root / "photos/boat.png").write_bytes(tagged(upright, 6, "PNG"))
        (folders.root / "photos/a.heic").touch()
        (folders.root / "photos/old").mkdir(exist_ok=True)
    assert masks["plain"] == masks["tagged"]


def test_mistakes_are_one_line_each(folders: Folders, here: "InProcess") -> None:
    root = folders.root
    (root / "nothing").mkdir()
    boat = {"image": root / "photos/boat.png"}
    (root / "text.png").write_text("no map")
    np.save(root / "cube.npy", np.zeros((4, 4, 3)))
    cases = [
        ({"saliency": root / "gone"}, "--saliency: no such file or folder"),
        ({"saliency": root / "maps/boat.png"}, "is a file, but --image is a folder"),
        ({"saliency": root / "nothing"}, "holds no map for any of 3 images"),
        ({**boat, "saliency": root / "nothing"}, "holds no map boat.png"),
        ({"image": root / "nothing"}, "--image: no image in"),
        ({**boat, "saliency": root / "text.png"}, "cannot be read as a saliency map"),
        ({**boat, "saliency": root / "cube.npy"}, "must be [h, w], not [4, 4, 3]"),
        ({"truth": root / "gone"}, "--truth: no such file or folder"),
        ({"threshold": 1.5}, "--threshold 1.5 must lie in (0, 1]"),
        ({"points": 0}, "'0' is no positive whole number"),
        ({"points": 9}, "9 points in a prompt"),
        ({"weights": root / "gone"}, "--weights: no such file"),
        ({"model": "no_model"}, "unknown model 'no_model'"),
    ]
    for changes, message in cases:
        assert message in here.mistake(*folders.options(**changes)), changes
    save(root / "photos/boat.jpg", np.zeros((9, 9, 3), dtype=np.uint8))
    line = here.mistake(*folders.options())
    assert "boat.jpg and boat.png would write the same files" in line


def test_wrong_use_is_reported_before_torch_is_imported(folders: Folders) -> None:
    arguments = folders.options(threshold=2.0)
    program = (
        "import sys; from efficientsam_pl.cli import main as cli; "
        f"assert cli.main({arguments!r}) == 2; assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_the_guides_python_runs(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) == 2

    class BrightCentre(nn.Module):
        """In U2-Net's form: seven maps, the first one the finest."""

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            assert x.shape == (1, 3, 320, 320)
            finest = torch.zeros(1, 1, 320, 320)
            finest[..., 80:240, 80:240] = 1
            return (finest,) * 7

    image = np.array(Image.open(folders.root / "photos/boat.png"))
    given = {
        "network": BrightCentre(),
        "image": image,
        "model": load_model(None, str(folders.weights)),
    }
    monkeypatch.chdir(folders.root)
    exec(blocks[0], given)
    assert len(given["salient"].instances) == 1  # type: ignore[attr-defined]
    assert capsys.readouterr().out.count("[48, 64]") == 1
    exec(blocks[1], {})
    names = {"iou.png", "iou.svg", "precision_recall.png", "precision_recall.svg"}
    assert names <= {path.name for path in folders.root.iterdir()}
