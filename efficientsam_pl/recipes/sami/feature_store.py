"""The feature store of a config: its folders, the settings that decide it, and its data sets.

`DIR/train` (of a mixture `DIR/train0`, `DIR/train1`, ...) holds the features of data.train,
`DIR/heldout` those of data.heldout.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from efficientsam_pl.config.diff import flatten
from efficientsam_pl.config.load import ConfigError, as_dict
from efficientsam_pl.data.build import DatasetSplits, build_reader
from efficientsam_pl.data.dataloaders import Stream
from efficientsam_pl.data.features.codec import VERSION
from efficientsam_pl.data.features.dataset import (
    MapLookup,
    StoredMapDataset,
    StoredViewDataset,
    Student,
    ViewLookup,
)
from efficientsam_pl.data.features.image_maps import ImageMaps
from efficientsam_pl.data.features.store import FeatureSet, is_claimed, open_features
from efficientsam_pl.data.features.views import Views
from efficientsam_pl.data.schema import IMAGE_SUFFIXES
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.errors import UserError
from efficientsam_pl.inference.hub import weights_sha256
from efficientsam_pl.models.config import TeacherConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.storage.files import full_path

_MARKS = ",*?[{"  # special characters of shard patterns
# Keys that do not change a feature, or that belong to teachers of another kind
_UNUSED = {
    "sam": ("kind", "sharding", "overlap", "batch", "weights", "timm_name"),
    "timm": ("kind", "sharding", "overlap", "batch", "weights", "encoder", "output"),
}


@dataclass(frozen=True)
class StorePart:
    """The features of one set of images."""

    key: str  # config key of the images
    folder: str
    images: ShardSet
    heldout: bool


def store_parts(config: PretrainConfig, sets: DatasetSplits) -> list[StorePart]:
    """List the store's parts: the training sets, then the held-out one, if there is one.

    Raises:
        ConfigError: No features.dir, or one with special characters of patterns.
    """
    given = config.features.dir
    if not given:
        raise ConfigError("features.dir= must be given: the folder of the teacher's features")
    if set(given) & set(_MARKS):
        raise ConfigError(
            f"features.dir={given}: none of {_MARKS} is allowed, since they are special in patterns"
        )
    home = full_path(given.rstrip("/"))
    if len(sets.train) == 1:
        parts = [StorePart("data.train", f"{home}/train", sets.train[0], heldout=False)]
    else:
        parts = [
            StorePart(f"data.mixture[{n}].shards", f"{home}/train{n}", shards, heldout=False)
            for n, shards in enumerate(sets.train)
        ]
    if sets.heldout is not None:
        parts.append(StorePart("data.heldout", f"{home}/heldout", sets.heldout, heldout=True))
    return parts


def describe(config: PretrainConfig, heldout: bool = False) -> dict[str, Any]:
    """Return the settings that decide stored features, as plain values by their config keys."""
    features = config.features
    described: dict[str, Any] = {
        "version": VERSION,
        "features.kind": features.kind,
        "features.numbers": features.numbers,
        **describe_teacher(config.teacher),
    }
    described["data.decoding"] = "exact" if _exact(config, heldout) else "scaled"
    if features.kind == "photos":
        return described | {"features.grid": features.grid}
    student = config.sami.student
    described["sami.student.image_size"] = student.image_size
    described["sami.student.grid"] = student.grid()
    if heldout:
        return described | {"crop": "centre"}
    drawn = {"features.views": features.views, "features.seed": features.seed}
    return described | drawn | flatten(as_dict(config.crop), "crop.")


def describe_teacher(teacher: TeacherConfig) -> dict[str, Any]:
    """Return the settings that decide a teacher's features of given pixels, by config key."""
    described: dict[str, Any] = {"teacher.kind": teacher.kind}
    if teacher.kind == "pixels":
        return described
    settings = {k: v for k, v in as_dict(teacher).items() if k not in _UNUSED[teacher.kind]}
    if teacher.weights is not None:  # then the seed has no effect
        described["teacher.weights (SHA-256)"] = weights_sha256(teacher.weights)
        del settings["seed"]
    return described | flatten(settings, "teacher.")


def views_of(config: PretrainConfig, heldout: bool) -> Views:
    """Build the views whose features are stored."""
    features = config.features
    return Views(
        crop=None if heldout else config.crop,
        count=1 if heldout else features.views,
        seed=features.seed,
        side=config.sami.student.image_size,
        exact=_exact(config, heldout),
    )


def maps_of(config: PretrainConfig, heldout: bool) -> ImageMaps:
    """Build the layout of the stored features of whole images."""
    return ImageMaps(config.teacher.image_size, config.features.grid, _exact(config, heldout))


@contextmanager
def named(config: PretrainConfig, part: StorePart) -> Iterator[None]:
    """Add the store and the images' config key to errors about a part."""
    try:
        yield
    except UserError as error:
        raise UserError(f"features.dir={config.features.dir}, {part.key}: {error}") from error


def stored_datasets(config: PretrainConfig, sets: DatasetSplits) -> tuple[Stream, Stream | None]:
    """Open the training and held-out data sets with the features of `efficientsam embed-teacher`.

    Raises:
        UserError: No store, or one of another teacher, size, version or other images.
    """
    parts = store_parts(config, sets)
    opened = [_opened(config, part) for part in parts]
    if sets.heldout is None:
        return _dataset(config, sets.train, opened, heldout=False), None
    return (
        _dataset(config, sets.train, opened[:-1], heldout=False),
        _dataset(config, (sets.heldout,), opened[-1:], heldout=True),
    )


def _opened(config: PretrainConfig, part: StorePart) -> FeatureSet:
    with named(config, part):
        if not is_claimed(part.folder, describe(config, part.heldout)):
            raise UserError(
                f"{part.folder} holds no features; `efficientsam embed-teacher` with this config "
                "writes them"
            )
        return open_features(part.folder, part.images)


def _dataset(
    config: PretrainConfig, images: tuple[ShardSet, ...], opened: list[FeatureSet], heldout: bool
) -> Stream:
    student_config, seed, sets = config.sami.student, config.run.seed, tuple(opened)
    student = Student(student_config.image_size, student_config.grid(), sets[0].channels)
    if config.features.kind == "views":
        of_views = ViewLookup(sets, views_of(config, heldout), seed)
        reader = build_reader(images, IMAGE_SUFFIXES, config.data, of_views)
        return StoredViewDataset(reader, student, of_views)
    reader = build_reader(images, IMAGE_SUFFIXES, config.data, MapLookup(sets))
    crop = None if heldout else config.crop
    return StoredMapDataset(reader, student, crop, maps_of(config, heldout), seed)


def _exact(config: PretrainConfig, heldout: bool) -> bool:
    """Return whether JPEGs are decoded at full size, as held-out images always are."""
    return heldout or config.data.decoding == "exact"
