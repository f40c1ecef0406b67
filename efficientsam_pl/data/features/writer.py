"""Write features: one feature shard for each image shard, by the runner that also packs images.

Data workers read, decode and crop; the teacher runs in this process, in batches that stay within
a shard, so that a resumed or divided job writes the same bytes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from efficientsam_pl.data.build import build_reader
from efficientsam_pl.data.config import DataConfig
from efficientsam_pl.data.dataloaders import inference_loader
from efficientsam_pl.data.features.codec import Numbers, Rounding, encode_features, storable
from efficientsam_pl.data.features.store import CHANNELS, IMAGES_SHA256, ROUNDING, feature_shards
from efficientsam_pl.data.features.teacher_inputs import (
    MakeTeacherInput,
    TeacherInputBatch,
    TeacherInputDataset,
)
from efficientsam_pl.data.manifest import Shard
from efficientsam_pl.data.packing.runner import ArrayShare
from efficientsam_pl.data.packing.writer import IndexNote, PackedSample, Skipped
from efficientsam_pl.data.sampler import RankShard
from efficientsam_pl.data.schema import IMAGE_SUFFIXES
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.errors import UserError

# From squares (0..255) and the part of each that the image covers to features in the squares'
# order, maps of one shape together
Embed: TypeAlias = Callable[
    [UInt8[Tensor, "m 3 s s"], Int64[Tensor, "m 2"]], Iterable[Float[Tensor, "b *place c"]]
]


@dataclass(frozen=True)
class Embedding:
    """Settings and teacher that turn images into features.

    Args:
        make_input: Crops squares of an image; runs in data workers.
        embed: The teacher.
        squares_per_image: Squares from one call of `make_input`.
        batch: Batch size of the teacher, squares.
        numbers: The stored number format.
    """

    make_input: MakeTeacherInput
    embed: Embed
    squares_per_image: int
    batch: int
    numbers: Numbers


@dataclass(frozen=True)
class FeatureUnit:
    """The features of one image shard."""

    name: str
    weight: int
    images: Shard
    embedding: Embedding
    data: DataConfig

    def samples(self) -> Iterator[PackedSample | Skipped | IndexNote]:
        """See Unit.

        Raises:
            UserError: The teacher returns nan or inf.
        """
        coder = _Coder(self.images.path, self.embedding)
        for batch in self._batches():
            files = coder.files(batch)
            for key, suffixes, corrupt, turn in zip(
                batch.key, batch.suffixes, batch.corrupt, batch.turns, strict=True
            ):
                encoded = {suffix: next(files) for suffix in suffixes}
                if corrupt is not None:
                    yield Skipped(key, f"{corrupt.kind}: {corrupt.detail}")
                    continue
                real = {suffix: file for suffix, file in encoded.items() if file is not None}
                if len(real) < len(encoded):
                    yield Skipped(key, "a feature is larger than float16 can hold")
                else:
                    yield PackedSample(key, real, turn=turn)
        yield IndexNote(
            {
                IMAGES_SHA256: self.images.sha256,
                CHANNELS: coder.channels,
                ROUNDING: asdict(coder.rounding),
            }
        )

    def _batches(self) -> Iterable[TeacherInputBatch]:
        reader = build_reader((ShardSet((self.images,)),), IMAGE_SUFFIXES, self.data)
        together = max(1, self.embedding.batch // self.embedding.squares_per_image)
        alone = RankShard(0, 1, together, together)
        dataset = TeacherInputDataset(reader, self.embedding.make_input)
        return inference_loader(dataset, self.images.samples, alone, self.data.workers)


class FeatureSource:
    """A data set whose features are written, with the settings that decide them (see Source)."""

    def __init__(
        self, images: ShardSet, embedding: Embedding, described: dict[str, Any], data: DataConfig
    ) -> None:
        self._places = feature_shards("", images)
        self._images = [shard for shard in images.shards if shard.path in self._places]
        self._embedding, self._described, self._data = embedding, described, data

    def described(self) -> dict[str, Any]:
        """See Source."""
        return self._described

    def weight(self, share: ArrayShare) -> int:
        """Count the squares of the share's images."""
        return sum(self._squares(shard) for shard in self._image_shards(share))

    def units(self, share: ArrayShare) -> Iterator[FeatureUnit]:
        """See Source."""
        for shard in self._image_shards(share):
            name = self._places[shard.path].removeprefix("/").removesuffix(".tar")
            yield FeatureUnit(name, self._squares(shard), shard, self._embedding, self._data)

    def _image_shards(self, share: ArrayShare) -> list[Shard]:
        return self._images[share.index :: share.count]

    def _squares(self, shard: Shard) -> int:
        return shard.samples * self._embedding.squares_per_image


class _Coder:
    """Encoder of feature files, and the rounding error and channels for the shard's index."""

    def __init__(self, shard: str, embedding: Embedding) -> None:
        self._shard, self._embedding = shard, embedding
        self.rounding, self.channels = Rounding(), 0

    def files(self, batch: TeacherInputBatch) -> Iterator[bytes | None]:
        """Yield a file for each of a batch's squares, None where float16 cannot hold a number."""
        keys = iter(
            k for k, suffixes in zip(batch.key, batch.suffixes, strict=True) for _ in suffixes
        )
        size = self._embedding.batch
        for squares, content_hw in zip(
            batch.squares.split(size), batch.content_hw.split(size), strict=True
        ):
            if not len(squares):
                return
            for features in self._embedding.embed(squares, content_hw):
                yield from self._coded(features, [next(keys) for _ in range(len(features))])

    def _coded(
        self, features: Float[Tensor, "b *place c"], keys: list[str]
    ) -> Iterator[bytes | None]:
        finite = features.isfinite().flatten(1).all(1).tolist()
        if not all(finite):
            raise UserError(
                f"the teacher's features of {self._shard} {keys[finite.index(False)]} hold nan or "
                "inf: are teacher.weights what they should be?"
            )
        fits = storable(features)
        stored = encode_features(features[fits], self._embedding.numbers)
        if len(stored.values):
            self.rounding.measure(features[fits], stored)
        self.channels, here = features.shape[-1], stored.cpu()
        number = 0
        for fit in fits.tolist():
            yield here.file(number) if fit else None
            number += fit
