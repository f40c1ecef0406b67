"""Measure the data pipeline from tar bytes to batches against a common pipeline, cat and tar."""

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.data.breakdown import part_rows
from benchmarks.data.inputs import Inputs, make_inputs, write_many_shards
from benchmarks.data.jpeg_decoders import decoder_rows
from benchmarks.data.scale import scale_rows
from benchmarks.harness import Row, alternate, parse_options, peak_memory_rise, report
from efficientsam_pl.data.config import CropConfig, DataConfig, MaskSelectionConfig
from efficientsam_pl.data.dataloaders import training_loader
from efficientsam_pl.data.datasets.crops import CropDataset
from efficientsam_pl.data.datasets.masks import Frame, MaskDataset
from efficientsam_pl.data.images.decode import image_size_of
from efficientsam_pl.data.packing.imagenet import Imagenet
from efficientsam_pl.data.packing.runner import ArrayShare, run_packing
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import (
    DatasetOrder,
    EpochOrder,
    Position,
    RankShard,
    SampleRef,
    TrainingBatchSampler,
)
from efficientsam_pl.data.schema import IMAGE_SUFFIXES, MASK_SUFFIXES
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.data.transforms import crop_scale, random_crop
from efficientsam_pl.data.worker_init import keep_memory
from efficientsam_pl.keyed_random import sample_key
from efficientsam_pl.storage.ranges import Range, merge_ranges

NAME = "data"
_SELECTION = MaskSelectionConfig(masks_per_image=32, clicks=1)
_SIDE, _CROP = 1024, 224
_IMAGE = "photo of 2250x1500 with 100 masks to 1024 and 32 masks at 256, a click and box each"
_HELD = 64  # masks that the common way keeps at full size, as EfficientViT-SAM does


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code does not depend on the goals."""
    options = parse_options(NAME, (__doc__ or "").splitlines()[0], argv)
    rounds = 3 if options.quick else 9
    torch.set_num_threads(1)
    keep_memory()  # as data workers do
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = make_inputs(folder, copies=16 if options.quick else 40)
        rows = [
            *masked_rows(inputs, 2 if options.quick else len(inputs.images), rounds),
            *memory_rows(inputs),
            *part_rows(encoded(inputs.original, 2), encoded(inputs.packed, 2), rounds),
            *imagenet_rows(inputs, rounds),
            *decoder_rows(inputs, rounds),
            *stream_rows(inputs, rounds),
            pack_row(inputs, folder, rounds),
            workers_row(inputs, 96 if options.quick else 240, rounds),
            *resume_rows(folder, rounds),
            *scale_rows(folder, options.quick),
        ]
    report(NAME, rows, options)
    return 0


def masked_rows(inputs: Inputs, count: int, rounds: int) -> list[Row]:
    """Compare an image, 32 masks at 256, a click and a box each with the common way."""
    ours, packed = masked(inputs.original), masked(inputs.packed)
    images, small = encoded(inputs.original, count), encoded(inputs.packed, count)
    taken = alternate(
        {
            "ours": lambda: [ours[SampleRef(0, i)] for i in range(count)],
            "packed": lambda: [packed[SampleRef(0, i)] for i in range(count)],
            "common": lambda: [common_way(*files) for files in images],
            "decode": lambda: [simplejpeg.decode_jpeg(jpeg) for jpeg, _ in images],
            "decode packed": lambda: [simplejpeg.decode_jpeg(jpeg) for jpeg, _ in small],
        },
        rounds,
    )
    rate = {name: count / timing.wall for name, timing in taken.items()}
    faster = partial(Row, unit="images/s", better="higher")
    return [
        faster(
            id="data.masked_photo",
            work=f"{_IMAGE}, one core; reference: every mask decoded to float32, then resized",
            value=rate["ours"],
            reference=rate["common"],
            goal=8,
        ),
        faster(
            id="data.packed_photo",
            work="the same photo packed with --long-side 1024; reference: the common way, original",
            value=rate["packed"],
            reference=rate["common"],
            goal=30,
        ),
        faster(
            id="data.packed_photo_decode",
            work="the same; reference: bare JPEG decode of the packed photos",
            value=rate["packed"],
            reference=rate["decode packed"],
            goal=0.30,
        ),
        faster(
            id="data.masked_photo_decode",
            work="the original photo; reference: its bare JPEG decode (the floor)",
            value=rate["ours"],
            reference=rate["decode"],
        ),
    ]


def memory_rows(inputs: Inputs) -> list[Row]:
    """Compare the memory that one image needs beside the process itself with the common way."""
    ours, common = (
        peak_memory_rise(partial(one_masked, inputs.original, way)) / 1e6
        for way in ("ours", "common")
    )
    return [
        Row(
            id="data.masked_photo_memory",
            work=f"rise of resident memory for one {_IMAGE}",
            value=ours,
            unit="MB",
            goal=60,
        ),
        Row(
            id="data.common_way_memory",
            work=f"the same, every mask decoded, {_HELD} held at full size as float32",
            value=common,
            unit="MB",
        ),
    ]


def masked(pattern: str) -> MaskDataset:
    """Open the finetuning data set of a pattern, squashed to 1024."""
    reader = SampleReader([open_shards(pattern)], MASK_SUFFIXES)
    return MaskDataset(reader, _SELECTION, Frame(_SIDE, "squash"), seed=0)


def encoded(pattern: str, count: int) -> list[tuple[bytes, bytes]]:
    """Read JPEG and JSON of the first samples, one for each image."""
    shards = open_shards(pattern)
    read = SampleReader([shards], MASK_SUFFIXES).read([SampleRef(0, i) for i in range(count)])
    return [(bytes(r.files["jpg"]), bytes(r.files["json"])) for r in read if r is not None]


def common_way(jpeg: bytes, record: bytes) -> list[torch.Tensor]:
    """Decode every mask at full size, convert the kept ones to float32 and resize them in turn."""
    import io
    import json

    from PIL import Image
    from pycocotools import mask as coco_mask

    image = np.array(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    square = F.interpolate(pixels, (_SIDE, _SIDE), mode="bilinear", align_corners=False)
    decoded: list[torch.Tensor] = []
    for annotation in json.loads(record)["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        if len(decoded) < _HELD:
            decoded.append(torch.from_numpy(mask).float())
    masks = torch.stack(decoded)
    chosen = torch.randperm(len(masks))[:32]
    small = [F.interpolate(masks[i][None, None], (256, 256), mode="bilinear") for i in chosen]
    clicks, boxes = [], []
    for i in chosen:
        ys, xs = masks[i].nonzero(as_tuple=True)
        at = int(torch.randint(len(ys), ()))
        clicks.append(torch.stack([xs[at], ys[at]]))
        boxes.append(torch.stack([xs.min(), ys.min(), xs.max(), ys.max()]))
    return [square, torch.cat(small) > 0.5, torch.stack(clicks), torch.stack(boxes)]


def one_masked(pattern: str, way: str) -> Callable[[], object]:
    """Prepare one image, in a process that has loaded its code with another set's small image."""
    torch.set_num_threads(1)
    packed = pattern.replace("/original/", "/packed/")
    warm, ours = masked(packed), masked(pattern)
    small, files = encoded(packed, 1)[0], encoded(pattern, 1)[0]
    if way == "ours":
        warm[SampleRef(0, 0)]
        return lambda: ours[SampleRef(0, 0)]
    common_way(*small)
    return lambda: common_way(*files)


def imagenet_rows(inputs: Inputs, rounds: int) -> list[Row]:
    """Compare random crops of 224, bicubic with antialiasing, with bare decoding at that scale."""
    reader = SampleReader([open_shards(inputs.imagenet)], IMAGE_SUFFIXES)
    dataset = CropDataset(reader, CropConfig(), _CROP, seed=0)
    refs = [SampleRef(0, i) for i in range(len(inputs.imagenet_images))]
    read = [(r.sample.key, bytes(r.files["jpg"])) for r in reader.read(refs) if r is not None]

    scaled = [_scaling(key, jpeg) for key, jpeg in read]

    def decode() -> None:
        for (_, jpeg), options in zip(read, scaled, strict=True):
            simplejpeg.decode_jpeg(jpeg, "RGB", **options)

    taken = alternate({"ours": lambda: [dataset[ref] for ref in refs], "decode": decode}, rounds)
    rate = {name: len(read) / timing.wall for name, timing in taken.items()}
    return [
        Row(
            id="data.imagenet_crop",
            work="ImageNet photo to a random 224 crop, bicubic with antialiasing, one core; "
            "reference: bare JPEG decode at the same scaling",
            value=rate["ours"],
            unit="images/s",
            reference=rate["decode"],
            goal=0.50,
            better="higher",
        )
    ]


def _scaling(key: str, jpeg: bytes) -> dict[str, int]:
    """Return the arguments with which the data set decodes this image."""
    height, width = image_size_of(jpeg)
    crop = random_crop((height, width), CropConfig(), sample_key(0, 0, key))
    scale = next((s for s in (8, 4, 2) if s <= crop_scale(crop, _CROP)), 1)
    return {"min_height": -(-height // scale), "min_width": -(-width // scale), "min_factor": scale}


def stream_rows(inputs: Inputs, rounds: int) -> list[Row]:
    """Compare reading an epoch's bytes in shuffled order with cat; count the reads."""
    shards = open_shards(inputs.original)
    order = EpochOrder(shards.sizes(), 0, 0, 8).samples(0, len(shards))
    reader = SampleReader([shards], MASK_SUFFIXES)
    size = sum(shard.bytes for shard in shards.shards) / 1e6
    paths = [shard.path for shard in shards.shards]

    def read_all() -> None:
        for first in range(0, len(order), 16):
            reader.read([SampleRef(0, sample) for sample in order[first : first + 16]])

    def cat() -> None:
        subprocess.run(["cat", *paths], stdout=subprocess.DEVNULL, check=True)

    taken = alternate({"stream": read_all, "cat": cat}, rounds)
    return [
        Row(
            id="data.stream",
            work=f"samples of {size:.0f} MB of shards read in shuffled order, 16 at a time, not "
            "decoded; reference: cat of the shards (both from the page cache)",
            value=size / taken["stream"].wall,
            unit="MB/s",
            reference=size / taken["cat"].wall,
            goal=0.50,
            better="higher",
        ),
        *(_reads_row(neighbours) for neighbours in (1, 8)),
    ]


def _reads_row(neighbours: int) -> Row:
    """Count a rank's reads, of 8 ranks, in blocks of eight shards of a thousand ImageNet images."""
    stride = 110 * 1024
    sizes, micro, steps = [1000] * 16, 64, 20
    batches = TrainingBatchSampler(
        DatasetOrder(sizes, 0, 8, neighbours), RankShard(3, 8, micro, 8 * micro)
    )
    reads = samples = 0
    for refs in islice(iter(batches), steps):
        at = [divmod(ref.sample or 0, 1000) for ref in refs]
        ranges = [Range(str(shard), stride * place, stride - 1024) for shard, place in at]
        reads, samples = reads + len(merge_ranges(ranges)[0]), samples + len(ranges)
    return Row(
        id=f"data.reads_neighbours_{neighbours}",
        work=f"reads a sample, micro-batches of 64 of one rank in 8, photos of 110 KiB, blocks of "
        f"8 shards x 1000, data.neighbours={neighbours}",
        value=reads / samples,
        unit="reads",
    )


def pack_row(inputs: Inputs, folder: Path, rounds: int) -> Row:
    """Compare packing byte for byte with tar, sync and sha256sum of the same files."""
    tree = folder / "tree"
    for copy in range(12):
        (tree / f"class-{copy}").mkdir(parents=True)
        for image in (*inputs.images, *inputs.imagenet_images):
            (tree / f"class-{copy}" / f"{image.stem}_{copy}.jpg").write_bytes(image.read_bytes())
    size = sum(file.stat().st_size for file in tree.rglob("*.jpg")) / 1e6
    turns = iter(range(1_000_000))

    def ours() -> None:
        out = folder / f"pack-{next(turns)}"
        run_packing(Imagenet(str(tree), None, 10_000), str(out), ArrayShare(), 0, lambda _: None)

    def tar() -> None:
        out = folder / f"tar-{next(turns)}.tar"
        script = 'tar -cf "$0" -C "$1" . && sync "$0" && sha256sum "$0"'
        command = ["sh", "-c", script, str(out), str(tree)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)

    taken = alternate({"ours": ours, "tar": tar}, rounds)
    return Row(
        id="data.pack",
        work=f"{size:.0f} MB of JPEGs packed byte for byte in one process, with index and "
        "manifest; reference: tar, sync and sha256sum of the same files",
        value=size / taken["ours"].wall,
        unit="MB/s",
        reference=size / taken["tar"].wall,
        goal=0.50,
        better="higher",
    )


def workers_row(inputs: Inputs, images: int, rounds: int) -> Row:
    """Compare one and two worker processes on the same micro-batches."""
    dataset = masked(inputs.packed)
    samples = len(open_shards(inputs.packed))
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, measured in rates.items():
            batches = TrainingBatchSampler(DatasetOrder([samples], 0, 1), RankShard(0, 1, 4, 4))
            loader = iter(training_loader(dataset, batches, DataConfig(workers=workers)))
            for _ in range(2 * workers):
                next(loader)  # until all are at work
            start = time.perf_counter()
            for _ in range(images // 4):
                next(loader)
            measured.append(images / (time.perf_counter() - start))
            del loader
    return Row(
        id="data.workers",
        work="packed photos through a DataLoader of 2 workers; reference: 1 worker",
        value=float(np.median(rates[2])),
        unit="images/s",
        reference=float(np.median(rates[1])),
        goal=1.7,
        better="higher",
    )


def resume_rows(folder: Path, rounds: int) -> list[Row]:
    """Time opening a set of a million samples and reading the first batch at random positions."""
    pattern = write_many_shards(folder / "many", shards=1000, samples=1000)
    draw = np.random.default_rng(0)
    seconds = []
    config = DataConfig(workers=2)
    for _ in range(rounds):
        start = time.perf_counter()
        shards = open_shards(pattern)
        dataset = MaskDataset(
            SampleReader([shards], MASK_SUFFIXES), _SELECTION, Frame(64, "squash"), seed=0
        )
        place = Position(3, int(draw.integers(len(shards))))
        batches = TrainingBatchSampler(
            DatasetOrder(shards.sizes(), 0, 8), RankShard(0, 1, 32, 32), place
        )
        next(iter(training_loader(dataset, batches, replace(config, read_ahead=1))))
        seconds.append(time.perf_counter() - start)
    return [
        Row(
            id="data.resume",
            work="from opening 1000 shards x 1000 samples to the first batch at a random place of "
            f"an epoch, 2 workers; the slowest of {rounds}",
            value=max(seconds),
            unit="s",
            goal=3,
        )
    ]
