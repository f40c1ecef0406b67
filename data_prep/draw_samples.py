"""Draw finetuning samples of a set: image, masks at the loss resolution, boxes and clicks.

`python data_prep/draw_samples.py 'shards/*.tar' --out DIR` reads samples as training does and
writes a PNG for each.
"""

import argparse
import sys
from pathlib import Path

import torch

from efficientsam_pl.data.config import MaskSelectionConfig
from efficientsam_pl.data.datasets.masks import Frame, MaskDataset
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import EpochOrder, SampleRef
from efficientsam_pl.data.schema import MASK_SUFFIXES
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.structures import Label, MaskBatch
from efficientsam_pl.visualization.overlay import DrawnPrompt, overlay

_CLICKS = 2


def main() -> int:
    """Draw the first samples of an epoch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pattern", metavar="'PATTERN'")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=3, metavar="N")
    parser.add_argument("--masks", type=int, default=8, metavar="N", help="drawn in an image")
    parser.add_argument("--side", type=int, default=1024, metavar="N", help="of the model, pixels")
    parser.add_argument("--resize", choices=("squash", "pad"), default="pad")
    parser.add_argument("--flip", type=float, default=0.0, metavar="P", help="share mirrored")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    shards = open_shards(arguments.pattern)
    selection = MaskSelectionConfig(
        masks_per_image=arguments.masks, clicks=_CLICKS, flip=arguments.flip
    )
    reader = SampleReader([shards], MASK_SUFFIXES)
    frame = Frame(arguments.side, arguments.resize)
    dataset = MaskDataset(reader, selection, frame, arguments.seed)
    order = EpochOrder(shards.sizes(), arguments.seed, 0, block_shards=8)
    numbers = order.samples(0, min(arguments.count, len(shards)))
    batch = dataset.collate(dataset.__getitems__([SampleRef(0, number) for number in numbers]))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for place, key in enumerate(batch.key):
        path = arguments.out / f"{key}.png"
        draw(batch, place, path)
        print(f"{path}: {int(batch.valid[place].sum())} masks")
    for sample in batch.corrupt:
        print(f"{sample.shard} {sample.key}: {sample.kind} ({sample.detail})")
    return 0


def draw(batch: MaskBatch, place: int, path: Path) -> None:
    """Draw one image of a batch, in the model's frame."""
    count = int(batch.valid[place].sum())
    masks = batch.masks[place, :count]
    factor = batch.image.shape[-1] // masks.shape[-1]
    for axis in (-2, -1):
        masks = torch.repeat_interleave(masks, factor, dim=axis)
    clicks, boxes = batch.clicks_px[place, :count], batch.boxes_xyxy_px[place, :count]
    prompts = [
        DrawnPrompt(
            points_xy=tuple((x, y) for x, y in points.tolist()),
            labels=(Label.POSITIVE,) * len(points),
            box_xyxy=(x0, y0, x1, y1),
        )
        for points, (x0, y0, x1, y1) in zip(clicks, boxes.tolist(), strict=True)
    ]
    image = batch.image[place].permute(1, 2, 0).contiguous().numpy()
    overlay(image, masks.numpy(), prompts).save(path)


if __name__ == "__main__":
    sys.exit(main())
