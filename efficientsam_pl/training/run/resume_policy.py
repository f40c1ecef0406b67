"""Which keys of a config say what a run learns, and which only where and how it runs.

A run goes on under other keys of the second kind as it is; under others of the first kind it
would be another run.
"""

from collections.abc import Mapping
from typing import Any, Literal

from efficientsam_pl.config.diff import diff, join_first

Kind = Literal["recipe", "told", "free"]

_TOLD_AT_MOST = 5
_ABSENT = object()

# By section: keys that may differ, and those of them of which it is told. All others, and all
# sections that are not named here, are the recipe. `*` stands for all keys of a section.
_FREE: dict[str, str] = {
    "run": "dir resume changed scratch trace",
    "data": "heldout index_dir workers read_ahead cache_dir cache_gib max_bad_fraction",
    "data.coco": "heldout_annotations heldout_images",
    "teacher": "precision batch sharding",
    "masks": "decoded_at_once",
    "trainer": (
        "micro_batch accelerator devices nodes strategy precision compile activations "
        "visualized_images picture_every_steps validate_every_steps checkpoint_every_steps "
        "subepochs "
        "checkpoints_kept checkpoint_forever_every_steps checkpoint_writing best_metric logger"
    ),
    "interruption": "*",
    "validation": "*",
}
_TOLD: dict[str, str] = {
    "data": "train",  # the samples themselves are compared where they are read
    "data.mixture": "shards",
    "data.coco": "annotations images",
    "teacher": "weights",
    "features": "dir",
    "model": "name weights encoder decoder",  # its shape is compared with the checkpoint's
    "trainer": "max_steps",  # a run may be made longer; its schedule is stretched
}


def kind_of(key: str) -> Kind:
    """What a full key decides; an entry of a list is named without its number."""
    section, _, name = key.rpartition(".")
    if name in _TOLD.get(section, "").split():
        return "told"
    free = _FREE.get(section, "").split()
    return "free" if "*" in free or name in free else "recipe"


def changes(before: Mapping[str, Any], now: Mapping[str, Any], kind: Kind) -> list[str]:
    """What of a kind differs, as `optim.peak_lr was 0.0004, now 0.0002`.

    A key that only `now` has is new in this program, and no change.
    """
    return [
        f"{key} was {_shown(old)}, now {_shown(new)}"
        for key, old, new in diff(before, now, absent=_ABSENT)
        if old is not _ABSENT and kind_of(_unnumbered(key)) == kind
    ]


def one_line(differences: list[str]) -> str:
    """The first few of them, and how many more there are."""
    return join_first(differences, _TOLD_AT_MOST)


def _unnumbered(key: str) -> str:
    return ".".join(part.split("[")[0] for part in key.split("."))


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "not there"
    return "null" if value is None else str(value)
