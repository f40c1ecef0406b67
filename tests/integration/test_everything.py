"""`efficientsam everything` as a user meets it: pictures, records, shards, and what goes error."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam_pl import load_model
from efficientsam_pl.cli import main as cli
from efficientsam_pl.config import load as configs
from efficientsam_pl.data.schema import from_json
from efficientsam_pl.export.consolidate import write_safetensors
from efficientsam_pl.inference.automask.config import EverythingConfig
from efficientsam_pl.inference.automask.generator import generate_masks
from efficientsam_pl.inference.load import load_segmenter
from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.rle import area, decode
from efficientsam_pl.storage.tar import scan_tar

HEIGHT, WIDTH = 72, 96
MODEL = """\
encoder: {width: 24, depth: 1, heads: 3, image_size: 64, position_grid: 4, neck_channels: 32}
decoder: {mlp_width: 32, iou_head_width: 32}
"""
LOOSE = (
    *("--points-per-side", 4, "--pred-iou-thresh", 0, "--stability-score-thresh", 0.1),
    *("--stability-score-offset", 0.01, "--box-nms-thresh", 1.01, "--points-per-batch", 5),
)


@dataclass(frozen=True)
class Set:
    """An image, an untrained model, and a folder with a file that is not an image."""

    folder: Path

    @property
    def image_file(self) -> Path:
        return self.folder / "photos" / "a.jpg"

    @property
    def weights(self) -> Path:
        return self.folder / "tiny.safetensors"

    def everything(self, image: Path, out: Path, *extra: object) -> list[str]:
        named = ["everything", "--weights", self.weights, "--image", image, "--out", out]
        return list(map(str, [*named, "--accelerator", "cpu", *extra]))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Set:
    folder = tmp_path_factory.mktemp("set")
    here = Set(folder)
    (folder / "tiny.yaml").write_text(MODEL)
    config = configs.load(SegmenterConfig, [str(folder / "tiny.yaml")], [])
    torch.manual_seed(0)
    model = load_segmenter(config, None)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = model.state_dict()
    write_safetensors(
        here.weights, state, state.values(), configs.as_dict(config), {"stage": "test"}
    )
    (folder / "photos").mkdir()
    draw = np.random.default_rng(0)
    for name in ("a.jpg", "b.c.png", "b_c.jpg"):
        pixels = draw.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / name)
    (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (folder / "photos" / "notes.txt").write_text("no image")
    (folder / "empty").mkdir()
    return here


def run(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(arguments)
    said = capfd.readouterr()
    return code, said.out, said.err


def test_an_images_masks_are_written(
    tiny: Set, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, records = tmp_path / "out", tmp_path / "deep" / "a.json"
    code, printed, error = run(
        tiny.everything(tiny.image_file, out, *LOOSE, "--json", records), capfd
    )
    assert (code, error) == (0, "")
    written_records = json.loads(records.read_text())
    expected = generate_masks(
        load_model(None, str(tiny.weights)),
        np.array(Image.open(tiny.image_file)),
        EverythingConfig(
            points_per_side=4,
            pred_iou_thresh=0.0,
            stability_score_thresh=0.1,
            stability_score_offset=0.01,
            box_nms_thresh=1.01,
            points_per_batch=5,
        ),
    )
    assert written_records == expected
    assert len(written_records) > 3
    assert f"1 image, {len(written_records)} mask" in printed
    assert sorted(path.name for path in out.iterdir()) == ["a_masks.png", "a_overlay.png"]
    with Image.open(out / "a_overlay.png") as overlay:
        assert overlay.size == (WIDTH, HEIGHT)
        assert (np.array(overlay) != np.array(Image.open(tiny.image_file))).any()


def test_a_folders_images_become_shards_that_train(
    tiny: Set, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, shards, records = (tmp_path / name for name in ("out", "shards", "json"))
    options = (*LOOSE, "--shards", shards, "--json", records)
    code, printed, _ = run(tiny.everything(tiny.image_file.parent, out, *options), capfd)
    assert code == 0
    assert "3 images, 1 skipped" in printed
    assert "skipped" in printed
    assert "broken.jpg" in printed
    keys = ["a", "b_c", "b_c_jpg"]
    assert sorted(path.stem for path in records.iterdir()) == keys
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{key}_{kind}.png" for key in keys for kind in ("masks", "overlay")
    )

    [shard] = shards.glob("*.tar")
    data = shard.read_bytes()
    with shard.open("rb") as file:
        members = {m.name: data[m.offset : m.offset + m.size] for m in scan_tar(file).members}
    assert sorted(members) == sorted(
        f"{key}.{suffix}" for key in keys for suffix in ("jpg", "json")
    )
    assert members["a.jpg"] == tiny.image_file.read_bytes()  # not encoded again
    for key in keys:
        written, expected = (
            json.loads(members[f"{key}.json"]),
            json.loads((records / f"{key}.json").read_text()),
        )
        assert from_json(members[f"{key}.json"]).height == HEIGHT
        expected = [record for record in expected if record["area"]]
        assert written["image"]["file_name"] == f"{key}.jpg"
        for entry, record in zip(written["annotations"], expected, strict=True):
            assert {name: entry[name] for name in record} == record

    code, printed, _ = run(["check-shards", f"{shards}/*.tar"], capfd)
    assert code == 0, printed
    train = [
        *("finetune", "-c", "debug/cpu", "trainer.max_steps=2", "optim.warmup_steps=1"),
        f"model.name={tiny.folder / 'tiny.yaml'}",
        f"data.train={shards}/*.tar",
        f"run.dir={tmp_path / 'run'}",
    ]
    code, _, error = run(train, capfd)
    assert code == 0, error
    code, _, error = run(tiny.everything(tiny.image_file, out, *LOOSE, "--shards", shards), capfd)
    assert code == 2
    assert "--shards" in error
    assert "holds shards already" in error


def test_small_regions_are_gone(
    tiny: Set, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "a.json"
    options = ("--preset", "notebook", *LOOSE, "--min-mask-region-area", 30, "--json", records)
    assert run(tiny.everything(tiny.image_file, tmp_path / "out", *options), capfd)[0] == 0
    written_records = json.loads(records.read_text())
    assert written_records
    for record in written_records:
        pixels = decode(record["segmentation"]).sum()
        assert record["area"] == area(record["segmentation"]) == pixels


@pytest.mark.parametrize(
    ("image", "extra", "named"),
    [
        ("photos/a.jpg", ["--pred-iou-thresh", "88"], ["--pred-iou-thresh=88", "[-1, 1]"]),
        ("photos/a.jpg", ["--points-per-side", "0"], ["--points-per-side", "'0'"]),
        ("photos/a.jpg", ["--preset", "sam2"], ["--preset", "notebook"]),
        ("photos/a.jpg", ["--json", "empty"], ["--json", "empty", "folder"]),
        ("photos/gone.jpg", [], ["--image", "gone.jpg"]),
        ("photos/broken.jpg", [], ["--image", "broken.jpg"]),
        ("empty", [], ["--image", "empty", "no image"]),
        ("photos", ["--json", "tiny.yaml"], ["--json", "tiny.yaml", "folder"]),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    image: str,
    extra: list[str],
    named: list[str],
    tiny: Set,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tiny.folder)
    code, _, error = run(tiny.everything(Path(image), tmp_path / "out", *extra), capfd)
    assert code == 2
    [line] = error.splitlines()
    assert line.startswith("efficientsam: ")
    assert all(part in line for part in named), line
    assert not (tmp_path / "out").exists()
