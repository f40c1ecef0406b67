"""Which keys of a config say what a run learns, and which only where and how it runs.

A run goes on under other keys of the second kind as it is; under others of the first kind it
would be another run.
"""

from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["recipe", "told", "free"]

_TOLD_AT_MOST = 5

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


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A plain config by full keys: `data.mixture[0].weight`."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{key}.")
        elif isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value):
            for number, one in enumerate(value):
                found |= flat(one, f"{key}[{number}].")
        else:
            found[key] = list(value) if isinstance(value, tuple) else value  # as YAML has it
    return found


def changes(before: Mapping[str, Any], now: Mapping[str, Any], kind: Kind) -> list[str]:
    """What of a kind differs, as `optim.peak_lr was 0.0004, now 0.0002`.

    A key that only `now` has is new in this program, and no change.
    """
    old, new = flat(before), flat(now)
    return [
        f"{key} was {_shown(value)}, now {_shown(new[key]) if key in new else 'not there'}"
        for key, value in old.items()
        if (key not in new or new[key] != value) and kind_of(_unnumbered(key)) == kind
    ]


def one_line(differences: list[str]) -> str:
    """The first few of them, and how many more there are."""
    more = len(differences) - _TOLD_AT_MOST
    told = "; ".join(differences[:_TOLD_AT_MOST])
    return f"{told}; and {more} more" if more > 0 else told


def _unnumbered(key: str) -> str:
    return ".".join(part.split("[")[0] for part in key.split("."))


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
