"""`efficientsam predict`: prompts, files, and what cannot be predicted."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.inference.hub import load_model
from efficientsam_pl.inference.predictor import Predictor
from efficientsam_pl.rle import area, decode
from efficientsam_pl.visualization.overlay import DrawnPrompt, overlay

if TYPE_CHECKING:
    from tests.integration.conftest import InProcess, OwnProcess, TinyModel


HEIGHT, WIDTH, LOW_RES = 48, 64, 16  # of the tiny model's photo and of its logits
WRONG_PREDICTIONS: list[tuple[dict[str, str], list[str], list[str]]] = [
    ({"image": "gone.png"}, ["--point", "1,2"], ["--image", "gone.png"]),
    ({"image": "text.txt"}, ["--point", "1,2"], ["--image", "text.txt"]),
    ({"weights": "gone.pt"}, ["--point", "1,2"], ["--weights", "gone.pt"]),
    ({"weights": "garbage.safetensors"}, ["--point", "1,2"], ["garbage.safetensors"]),
    ({"weights": "garbage.pt", "model": "tiny.yaml"}, ["--point", "1,2"], ["garbage.pt"]),
    ({"weights": "text.txt", "model": "tiny.yaml"}, ["--point", "1,2"], ["text.txt"]),
    ({"weights": "list.pt", "model": "tiny.yaml"}, ["--point", "1,2"], ["list.pt"]),
    ({"weights": "other.pt", "model": "tiny.yaml"}, ["--point", "1,2"], ["some.weight"]),
    ({"weights": "other.pt"}, ["--point", "1,2"], ["other.pt", "--model"]),
    ({"model": "tiny_masks.yaml"}, ["--point", "1,2"], ["tiny.safetensors", "negative"]),
    ({"model": "efficient_sam_xxl"}, ["--point", "1,2"], ["efficient_sam_xxl", "sam_vit_b"]),
    ({}, ["--point", "64.5,2"], ["(64.5, 2)", "64 x 48"]),
    ({}, ["--point=-1,2"], ["(-1, 2)"]),
    ({}, ["--point", "-1,2"], ["(-1, 2)", "64 x 48"]),
    ({}, ["--point", "-.5,2,1"], ["(-0.5, 2)"]),
    ({}, ["--point", "nan,2"], ["nan"]),
    ({}, ["--box", "1,49,3,99"], ["1,49,3,99", "64 x 48"]),
    ({}, ["--box", "1,2,3,4", "--box", "-9,2,0,5"], ["-9,2,0,5", "64 x 48"]),
    ({}, ["--box", "nan,2,3,4"], ["nan,2,3,4"]),
    ({}, ["--box", "1,2,3,4", "--chunk-size", "0"], ["--chunk-size"]),
    ({}, ["--box", "30,2,10,9"], ["x0 <= x1"]),
    ({}, ["--point", "1,2,0"], ["negative"]),
    ({}, [x for i in range(7) for x in ("--point", f"{i},2")], ["7 points", "6"]),
    ({}, [x for i in range(5) for x in ("--point", f"{i},2")] + ["--box", "1,1,9,9"], ["7 points"]),
    ({}, ["--point", "1,2", "--box", "1,1,2,2", "--box", "3,3,4,4"], ["--point", "--box"]),
    ({}, ["--mask-input", "logits.npy"], ["mask prompts"]),
    ({"mask-input": "gone.npy"}, [], ["--mask-input", "gone.npy"]),
    ({"mask-input": "text.txt"}, [], ["--mask-input", "text.txt"]),
    ({"mask-input": "cube.npy"}, [], ["--mask-input", "cube.npy"]),
    ({"mask-input": "text.npy"}, [], ["--mask-input", "text.npy"]),
    ({"mask-input": "several.npz"}, [], ["--mask-input", "several.npz"]),
    ({"mask-input": "small.npy"}, [], ["[1, 16, 16]", "[1, 4, 4]"]),
    ({"out": "text.txt"}, ["--point", "1,2"], ["text.txt"]),
    ({"npz": "."}, ["--point", "1,2"], ["Is a directory: ."]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "prompts", "named"), WRONG_PREDICTIONS, ids=lambda x: str(x)[:40]
)
def test_prediction_that_cannot_be_made_names_the_reason(
    changes: dict[str, str],
    prompts: list[str],
    named: list[str],
    tiny: "TinyModel",
    tmp_path: Path,
    here: "InProcess",
) -> None:
    options = {"out": str(tmp_path / "out"), **changes}
    line = here.mistake(*tiny.predict(*prompts, **options), folder=tiny.folder)
    assert all(part in line for part in named), line


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def mask_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("mask_*.png"))


def test_points_are_one_prompt_with_three_candidates(
    tiny: "TinyModel", tmp_path: Path, here: "InProcess"
) -> None:
    out, npz = tmp_path / "out", tmp_path / "deep/er/a.npz"
    told = here.done(*tiny.predict("--point", "20,20", "--point", "30,25,1", out=out, npz=npz))
    assert "mask 0" in told
    found = arrays(npz)
    assert {name: (a.shape, a.dtype) for name, a in found.items()} == {
        "masks": ((1, 3, HEIGHT, WIDTH), np.dtype(bool)),
        "low_res_logits": ((1, 3, LOW_RES, LOW_RES), np.dtype(np.float32)),
        "iou": ((1, 3), np.dtype(np.float32)),
    }
    assert mask_files(out) == ["mask_0.png"]
    with Image.open(out / "overlay.png") as overlay, Image.open(out / "mask_0.png") as mask:
        assert overlay.size == mask.size == (WIDTH, HEIGHT)
        assert (overlay.format, mask.format) == ("PNG", "PNG")
        best = found["masks"][0, found["iou"][0].argmax()]
        np.testing.assert_array_equal(np.array(mask.convert("L")) > 0, best)


def test_each_box_is_its_own_prompt(tiny: "TinyModel", tmp_path: Path, here: "InProcess") -> None:
    boxes = [("--box", f"{i},{i},{i + 20},{i + 15}") for i in (2, 10, 25)]
    both, alone = tmp_path / "all.npz", tmp_path / "second.npz"
    here.done(*tiny.predict(*[x for b in boxes for x in b], out=tmp_path / "all", npz=both))
    here.done(*tiny.predict(*boxes[1], out=tmp_path / "second", npz=alone))
    assert mask_files(tmp_path / "all") == ["mask_0.png", "mask_1.png", "mask_2.png"]
    assert arrays(both)["masks"].shape == (3, 3, HEIGHT, WIDTH)
    np.testing.assert_allclose(
        arrays(both)["low_res_logits"][1], arrays(alone)["low_res_logits"][0], atol=1e-4
    )


def test_points_with_a_box_are_one_prompt(
    tiny: "TinyModel", tmp_path: Path, here: "InProcess"
) -> None:
    npz = tmp_path / "a.npz"
    prompt = ("--box", "2,2,40,40", "--point", "20,20", "--point", "9,9")
    here.done(*tiny.predict(*prompt, out=tmp_path, npz=npz))
    assert arrays(npz)["masks"].shape == (1, 3, HEIGHT, WIDTH)


def test_single_mask_is_token_zero_alone(
    tiny: "TinyModel", tmp_path: Path, here: "InProcess"
) -> None:
    single, three = tmp_path / "1.npz", tmp_path / "3.npz"
    here.done(*tiny.predict("--box", "2,2,40,40", "--single-mask", out=tmp_path, npz=single))
    here.done(*tiny.predict("--box", "2,2,40,40", out=tmp_path, npz=three))
    assert arrays(single)["masks"].shape == (1, 1, HEIGHT, WIDTH)
    for candidate in arrays(three)["low_res_logits"][0]:
        assert not np.allclose(arrays(single)["low_res_logits"][0, 0], candidate)


def test_model_may_be_named_by_file_or_read_from_the_weights(
    tiny: "TinyModel", tmp_path: Path, here: "InProcess"
) -> None:
    told, named = tmp_path / "told.npz", tmp_path / "named.npz"
    here.done(*tiny.predict("--point", "9,9", out=tmp_path, npz=told))
    here.done(*tiny.predict("--point", "9,9", out=tmp_path, npz=named, model=tiny.model))
    one, other = arrays(told), arrays(named)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_earlier_mask_is_a_prompt_for_a_model_that_takes_one(
    tiny: "TinyModel", tmp_path: Path, here: "InProcess"
) -> None:
    model = {
        "model": tiny.model_with_mask_prompts,
        "weights": tiny.model_with_mask_prompts.with_suffix(".safetensors"),
        "mask-input": tiny.folder / "logits.npy",
    }
    plain = {k: v for k, v in model.items() if k != "mask-input"}
    files = [tmp_path / f"{name}.npz" for name in ("without", "with", "alone")]
    points = ("--point", "20,20", "--point", "5,5,0")
    here.done(*tiny.predict(*points, out=tmp_path / "0", npz=files[0], **plain))
    here.done(*tiny.predict(*points, out=tmp_path / "1", npz=files[1], **model))
    here.done(*tiny.predict(out=tmp_path / "2", npz=files[2], **model))
    without, together, alone = (arrays(file)["low_res_logits"] for file in files)
    assert without.shape == together.shape == alone.shape == (1, 3, LOW_RES, LOW_RES)
    assert not np.allclose(without, together)
    assert not np.allclose(together, alone)
    assert mask_files(tmp_path / "2") == ["mask_0.png"]
    assert (tmp_path / "2/overlay.png").is_file()


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"weights": "garbage.pt", "model": "tiny.yaml"}, "garbage.pt"), ({}, "negative")],
)
def test_fault_found_after_torch_is_imported_is_one_line_too(
    changes: dict[str, str], named: str, tiny: "TinyModel", tmp_path: Path, process: "OwnProcess"
) -> None:
    arguments = tiny.predict("--point", "9,2,0", out=tmp_path / "out", **changes)
    assert named in process.mistake(*arguments, folder=tiny.folder)


def box_options(boxes: list[list[float]]) -> list[str]:
    return [word for box in boxes for word in ("--box", ",".join(f"{side:g}" for side in box))]


@pytest.mark.parametrize("chunk_size", [1, 3, 32])
def test_files_of_many_boxes_hold_the_masks_of_the_python_interface(
    chunk_size: int, tiny: "TinyModel", tmp_path: Path, here: "InProcess"
) -> None:
    boxes = [[i, 2 * i, i + 20 + i % 3, 2 * i + 15] for i in range(10)]
    files = {"out": tmp_path, "npz": tmp_path / "a.npz", "rle": tmp_path / "new/a.json"}
    here.done(*tiny.predict(*box_options(boxes), "--chunk-size", chunk_size, **files))
    image = np.array(Image.open(tiny.photo).convert("RGB"))
    model = load_model(None, str(tiny.weights))
    expected = Predictor(model).embed(image).predict(boxes=boxes)
    written = arrays(tmp_path / "a.npz")
    for name in ("masks", "low_res_logits", "iou"):
        np.testing.assert_array_equal(written[name], getattr(expected, name).numpy())
    best, iou = expected.best().numpy(), expected.iou.amax(1).tolist()
    record = json.loads((tmp_path / "new/a.json").read_text())
    assert record["version"] == 1
    assert record["image"] == {"file_name": "photo.png", "height": HEIGHT, "width": WIDTH}
    assert len(record["annotations"]) == len(boxes)
    for index, annotation in enumerate(record["annotations"]):
        np.testing.assert_array_equal(decode(annotation["segmentation"]), best[index])
        assert annotation["area"] == area(annotation["segmentation"]) == best[index].sum()
        rows, columns = np.nonzero(best[index])
        x0, y0, x1, y1 = columns.min(), rows.min(), columns.max(), rows.max()
        assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert annotation["predicted_iou"] == pytest.approx(iou[index])
        assert annotation["prompt"] == {"box": boxes[index]}
        with Image.open(tmp_path / f"mask_{index}.png") as mask:
            np.testing.assert_array_equal(np.array(mask) > 0, best[index])
    prompts = [DrawnPrompt((), (), tuple(map(float, box))) for box in boxes]
    drawn = overlay(image, best, prompts, iou, iou_name="predicted IoU")
    with Image.open(tmp_path / "overlay.png") as actual:
        np.testing.assert_array_equal(np.array(actual), np.array(drawn))


def test_run_lengths_name_the_clicks_of_a_prompt(
    tiny: "TinyModel", tmp_path: Path, here: "InProcess"
) -> None:
    rle = tmp_path / "a.json"
    words = ("--point", "9,8", "--point", "20,20,1", "--box", "1,1,40,40")
    here.done(*tiny.predict(*words, out=tmp_path, rle=rle))
    [annotation] = json.loads(rle.read_text())["annotations"]
    assert annotation["prompt"] == {
        "point_coords": [[9, 8], [20, 20]],
        "point_labels": [1, 1],
        "box": [1, 1, 40, 40],
    }


def test_boxes_that_reach_out_of_the_image_are_clipped_and_said(
    tiny: "TinyModel", tmp_path: Path, here: "InProcess"
) -> None:
    wide, inside = tmp_path / "wide.npz", tmp_path / "inside.npz"
    out = [[-5, -2.5, 30, 30], [4, 4, 20, 20], [30, 20, 99, 50]]
    clipped = [[0, 0, 30, 30], [4, 4, 20, 20], [30, 20, WIDTH, HEIGHT]]
    message = here.done(*tiny.predict(*box_options(out), out=tmp_path, npz=wide))
    assert "2 boxes reached out of the image of 64 x 48 pixels and were clipped" in message
    quiet = here.done(*tiny.predict(*box_options(clipped), out=tmp_path, npz=inside))
    assert "clipped" not in quiet
    assert all(np.array_equal(arrays(wide)[name], arrays(inside)[name]) for name in arrays(wide))


def test_labels_of_very_many_masks_are_left_out_and_said(
    tiny: "TinyModel", tmp_path: Path, here: "InProcess", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efficientsam_pl.commands.predict._MAX_LABELS", 2)
    boxes = [[i, i, i + 20, i + 15] for i in range(3)]
    message = here.done(*tiny.predict(*box_options(boxes), out=tmp_path))
    assert "labels of the first 2 of 3 masks" in message
    assert mask_files(tmp_path) == ["mask_0.png", "mask_1.png", "mask_2.png"]


def test_prediction_that_fails_leaves_no_file(
    tiny: "TinyModel", tmp_path: Path, here: "InProcess"
) -> None:
    out = tmp_path / "out"
    files = {"out": out, "npz": out / "a.npz", "rle": out / "a.json"}
    here.mistake(*tiny.predict("--point", "1,2,0", **files))
    assert not out.exists()
