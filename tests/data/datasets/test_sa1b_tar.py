"""Genuine images in Meta's own layout, streamed as they are: no packing, no index beforehand."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from efficientsam_pl.data.config import MaskSelectionConfig
from efficientsam_pl.data.dataloaders import inference_loader
from efficientsam_pl.data.datasets.masks import Frame, MaskDataset
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import RankShard
from efficientsam_pl.data.schema import MASK_SUFFIXES, from_json
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.geometry import Resize, ResizeRule
from efficientsam_pl.rle import area, run_lengths

SIZES = {"sa_10039": (1500, 2000), "sa_192": (1500, 2250)}
MASKS = 6


def ellipses(number: int, hw: tuple[int, int]) -> list[np.ndarray]:
    draw = np.random.default_rng(number)
    y, x = np.mgrid[: hw[0], : hw[1]]
    masks = []
    for _ in range(MASKS):
        top, left = draw.uniform(0, hw[0]), draw.uniform(0, hw[1])
        high, wide = draw.uniform(20, 500, 2)
        masks.append(((y - top) / high) ** 2 + ((x - left) / wide) ** 2 < 1)
    return masks


def record_of(number: int, masks: list[np.ndarray]) -> bytes:
    """SA-1B's JSON with all of its keys."""
    height, width = masks[0].shape
    annotations: list[dict[str, Any]] = []
    for i, mask in enumerate(masks):
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        x, y, w, h = coco_mask.toBbox(rle).tolist()
        annotations.append(
            {
                "bbox": [x, y, w - 1, h - 1],
                "area": int(mask.sum()),
                "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
                "predicted_iou": 1.01,
                "point_coords": [[x, y]],
                "crop_box": [0, 0, width, height],
                "id": 1000 + i,
                "stability_score": 0.97,
            }
        )
    name = f"sa_{number}.jpg"
    image = {"image_id": number, "width": width, "height": height, "file_name": name}
    return json.dumps({"image": image, "annotations": annotations}).encode()


@pytest.fixture(scope="module")
def metas(
    shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[np.ndarray]]]:
    """sa_000000.tar of two images, and their masks."""
    path = tmp_path_factory.mktemp("sa1b") / "sa_000000.tar"
    truth = {}
    with tarfile.open(path, "w") as tar:
        for key, hw in SIZES.items():
            number = int(key.removeprefix("sa_"))
            truth[key] = ellipses(number, hw)
            jpeg = (shared / "data/sa1b_images" / f"{key}.jpg").read_bytes()
            for name, data in (
                (f"{key}.jpg", jpeg),
                (f"{key}.json", record_of(number, truth[key])),
            ):
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path, truth


def covered(mask: np.ndarray, resize: Resize) -> np.ndarray:
    """The share of each cell of 256 x 256 over the model's square, by two dense products."""

    def overlaps(pixels: int, scale: float) -> np.ndarray:
        edge, cell = np.arange(pixels + 1) * scale / 4, np.arange(256)[:, None]
        return np.clip(np.minimum(edge[1:], cell + 1) - np.maximum(edge[:-1], cell), 0, None)

    across, down = resize.scale_xy()
    return overlaps(mask.shape[0], down) @ mask @ overlaps(mask.shape[1], across).T


@pytest.mark.parametrize("rule", ["squash", "pad"])
def test_metas_own_tar_is_streamed_as_it_is(
    metas: tuple[Path, dict[str, list[np.ndarray]]], rule: ResizeRule
) -> None:
    path, truth = metas
    reader = SampleReader([open_shards(str(path))], MASK_SUFFIXES)
    selection = MaskSelectionConfig(masks_per_image=MASKS + 2, clicks=3)
    dataset = MaskDataset(reader, selection, Frame(1024, rule), seed=0)
    [batch] = inference_loader(dataset, 2, RankShard(0, 1, 2, 2), workers=0)
    assert batch.key == tuple(SIZES)
    assert batch.corrupt == ()
    assert batch.image.shape == (2, 3, 1024, 1024)
    assert batch.valid.sum(1).tolist() == [MASKS, MASKS]
    for place, key in enumerate(batch.key):
        resize = Resize.fit(SIZES[key], 1024, rule)
        for q, mask in enumerate(truth[key]):
            coverage = covered(mask, resize)
            clear = np.abs(coverage - 0.5) > 1e-6
            np.testing.assert_array_equal(
                batch.masks[place, q].numpy()[clear], coverage[clear] > 0.5
            )
            clicks = resize.points_back(batch.clicks_px[place, q])
            assert float((clicks - clicks.round()).abs().max()) < 1e-3
            assert all(mask[y, x] for x, y in clicks.round().long().tolist())
            ys, xs = np.nonzero(mask)
            box = torch.tensor([xs.min(), ys.min(), xs.max(), ys.max()]).float()
            torch.testing.assert_close(
                resize.boxes_back(batch.boxes_xyxy_px[place, q]), box, rtol=0, atol=1e-3
            )


def test_genuine_annotations_are_read(shared: Path) -> None:
    [record, single] = (
        json.loads((shared / "data/sa1b_json" / name).read_text())
        for name in ("sa_226381.json", "sa_3032002.json")
    )
    image = {"image_id": 3032002, "width": 2000, "height": 1500, "file_name": "sa_3032002.jpg"}
    if "annotations" not in single:
        single = {"image": image, "annotations": [single]}
    for loaded, count in ((record, 17), (single, 1)):
        parsed = from_json(json.dumps(loaded).encode())
        assert (parsed.height, parsed.width) == (1500, 2000)
        assert len(parsed.annotations) == count
        run_lengths([annotation.rle for annotation in parsed.annotations])
        for annotation, expected in zip(parsed.annotations, loaded["annotations"], strict=True):
            assert annotation.area == area(annotation.rle) == expected["area"]
            assert annotation.predicted_iou == expected["predicted_iou"]
            assert annotation.stability == expected["stability_score"]
