"""States keep their names in checkpoints, whatever their classes are called."""

import importlib
import pkgutil
from collections.abc import Iterator

import lightning as L  # noqa: N812

import efficientsam_pl

# A file format: checkpoints of earlier versions hold these
CALLBACK_KEYS = {
    "DataReport",
    "HeldoutScores",
    "LossHistory",
    "MeanFeatureBaseline",
    "RunCheckpoints",
}
DATA_MODULE_KEYS = {"StreamDataModule"}


def subclasses(base: type) -> Iterator[type]:
    """Subclasses in the package, direct and indirect."""
    for module in pkgutil.walk_packages(efficientsam_pl.__path__, "efficientsam_pl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    left, seen = [base], set[type]()
    while left:
        new = set(left.pop().__subclasses__()) - seen
        seen |= new
        left += new
    return (cls for cls in seen if cls.__module__.startswith("efficientsam_pl."))


def keeps_state(cls: type) -> bool:
    return cls.state_dict is not L.Callback.state_dict  # type: ignore[attr-defined]


def test_callbacks_that_keep_state_have_the_pinned_keys_under_any_class_name() -> None:
    stateful = [cls for cls in subclasses(L.Callback) if keeps_state(cls)]
    renamed = [type("Renamed", (cls,), {}) for cls in stateful]
    keys = [object.__new__(cls).state_key for cls in renamed]
    assert sorted(keys) == sorted(CALLBACK_KEYS)


def test_data_modules_store_their_state_under_the_pinned_name() -> None:
    assert {cls.__qualname__ for cls in subclasses(L.LightningDataModule)} == DATA_MODULE_KEYS
