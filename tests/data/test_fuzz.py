"""Random corruption: never a crash, a hang or a silent loss."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from efficientsam_pl.data.collate import PreparedImage, PreparedMaskedImage
from efficientsam_pl.data.config import CropConfig, MaskSelectionConfig
from efficientsam_pl.data.datasets.crops import CropDataset
from efficientsam_pl.data.datasets.masks import Frame, MaskDataset
from efficientsam_pl.data.index import from_bytes, to_bytes
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import MASK_SUFFIXES
from efficientsam_pl.data.shards import ShardSet, open_shards
from efficientsam_pl.errors import UserError
from efficientsam_pl.records import CorruptSample

TarOf = Callable[[Path, dict[str, bytes]], Path]
SAMPLES, ROUNDS = 8, 20


@pytest.fixture
def shard(
    tmp_path: Path,
    tar_of: TarOf,
    jpeg_of: Callable[..., bytes],
    noise: Callable[..., np.ndarray],
    good_sample: dict[str, bytes],
) -> Path:
    files = {}
    for i in range(SAMPLES):
        files |= {f"p{i}.jpg": jpeg_of(noise(i)), f"p{i}.json": good_sample["json"]}
    return tar_of(tmp_path / "s.tar", files)


def harmed(data: bytes, draw: np.random.Generator) -> bytes:
    """Bytes flipped here and there, a stretch overwritten, cut or taken out, or the tail cut."""
    changed = bytearray(data)
    place, length = int(draw.integers(len(data))), int(draw.integers(1, 3000))
    match draw.integers(6):
        case 0:
            del changed[place:]
        case 1:
            changed[place : place + length] = draw.bytes(len(changed[place : place + length]))
        case 2:
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        case 3:
            del changed[place : place + length]
        case _:
            for at in draw.integers(0, len(data), int(draw.integers(1, 30))):
                changed[at] ^= int(draw.integers(1, 256))
    return bytes(changed)


def prepared(shards: ShardSet) -> list[list[PreparedImage] | list[PreparedMaskedImage]]:
    """All samples through both streams and their collation."""
    reader = SampleReader([shards], MASK_SUFFIXES)
    refs = [SampleRef(0, number) for number in range(len(shards))]
    masked = MaskDataset(reader, MaskSelectionConfig(), Frame(32, "squash"), seed=1)
    cropped = CropDataset(reader, CropConfig(), 16, seed=1)
    whole, crops = masked.__getitems__(refs), cropped.__getitems__(refs)
    assert len(masked.collate(whole)) == len(cropped.collate(crops)) == len(refs)
    return [whole, crops]


def assert_each_is_good_or_reported(shards: ShardSet) -> None:
    for samples in prepared(shards):
        for sample in samples:
            good = sample.content if isinstance(sample, PreparedMaskedImage) else sample.image
            assert (good is None) == isinstance(sample.corrupt, CorruptSample)
        assert len(samples) == len(shards)


@pytest.mark.parametrize("block", range(10))
def test_corruption_behind_an_index_loses_no_sample(block: int, shard: Path) -> None:
    whole = shard.read_bytes()
    shards = open_shards(str(shard))
    for round_ in range(ROUNDS):
        changed = harmed(whole, np.random.default_rng([block, round_]))
        shard.write_bytes(changed)
        assert_each_is_good_or_reported(shards)  # the run goes on
        if len(changed) < len(whole):
            assert [d.kind for d in open_shards(str(shard)).corrupt] == ["truncated shard"]
        assert len(shards) == SAMPLES


def refused(use: Callable[[], object]) -> str:
    """Why it was refused, "" if it was not; anything but a UserError of one line is a crash."""
    message = ""
    try:
        use()
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    return message


def assert_reported_or_whole(pattern: str, index_dir: str) -> None:
    shards = open_shards(pattern, index_dir)
    assert_each_is_good_or_reported(shards)
    pairs = [sample.files.keys() == {"jpg", "json"} for sample in shards.samples()]
    assert sum(pairs) == SAMPLES or shards.corrupt


@pytest.mark.parametrize("block", range(6))
def test_corruption_before_the_index_is_made_is_reported(
    block: int, shard: Path, tmp_path: Path
) -> None:
    whole = shard.read_bytes()
    for round_ in range(ROUNDS):
        changed = harmed(whole, np.random.default_rng([99, block, round_]))
        if len(changed) == len(whole) and whole.startswith(changed.rstrip(b"\0")):
            continue  # a few zeros up to the end are how a shorter tar ends
        shard.write_bytes(changed)
        refused(partial(assert_reported_or_whole, str(shard), str(tmp_path / str(round_))))


def test_every_sample_is_good_where_nothing_is_harmed(shard: Path) -> None:
    shards = open_shards(str(shard))
    for samples in prepared(shards):
        assert [sample.corrupt for sample in samples] == SAMPLES * [None]


def test_harmed_index_is_used_or_reported(shard: Path, tmp_path: Path) -> None:
    open_shards(str(shard))
    place, messages = Path(f"{shard}.index.json"), set()
    whole = place.read_bytes()
    for round_ in range(5 * ROUNDS):
        draw = np.random.default_rng([7, round_])
        changed = bytearray(whole)
        for at in draw.integers(0, len(whole), int(draw.integers(1, 4))):
            changed[at] = int(draw.choice([*b"0123456789-,:A"]))
        place.write_bytes(changed)
        (tmp_path / "manifest.json").unlink(missing_ok=True)
        message = refused(lambda: assert_each_is_good_or_reported(open_shards(str(shard))))
        messages.add(message.partition("(")[0])
    assert "" in messages
    assert f"{place} is corrupt " in messages


def test_harmed_manifest_is_used_or_reported(shard: Path, tmp_path: Path) -> None:
    open_shards(str(shard))
    place, messages = tmp_path / "manifest.json", set()
    whole = place.read_bytes()
    for round_ in range(5 * ROUNDS):
        place.write_bytes(harmed(whole, np.random.default_rng([8, round_])))
        message = refused(lambda: assert_each_is_good_or_reported(open_shards(str(shard))))
        messages.add(message.partition("(")[0])
    assert f"{place} is corrupt " in messages


def test_random_bytes_are_an_index_or_reported(shard: Path) -> None:
    open_shards(str(shard))
    whole = Path(f"{shard}.index.json").read_bytes()
    message = set()
    for seed in range(300):
        data = harmed(whole, np.random.default_rng(seed))
        message.add(refused(lambda data=data: to_bytes(from_bytes(data, "x.index.json")))[:12])
    assert message <= {"", "x.index.json"}
    assert "x.index.json" in message
