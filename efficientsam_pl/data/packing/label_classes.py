"""The class list of a set of label maps, and which value of a map stands for which class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8, UInt16

from efficientsam_pl.data.class_list import check_names
from efficientsam_pl.data.images.label_map import UNKNOWN_CLASS
from efficientsam_pl.data.schema import CorruptSampleError
from efficientsam_pl.errors import UserError
from efficientsam_pl.records import IGNORED
from efficientsam_pl.storage.files import read_file

_ADE20K_COLUMNS = ("Idx", "Name")  # first and last of objectInfo150.txt
_VALUES = 2**16


@dataclass(frozen=True)
class LabelClasses:
    """Names by class number, the map value of the first class, and the values that are ignored.

    Value `first` + n stands for class n. 255 is ignored always, unless it is a class's value.
    """

    names: tuple[str, ...]
    first: int = 0
    ignored: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if len(self.names) > IGNORED:
            raise UserError(
                f"--classes: {len(self.names)} classes, and a label map holds at most {IGNORED}"
            )
        for value in sorted(self.ignored):
            if value in self.values():
                name = self.names[value - self.first]
                raise UserError(f"--ignored {value}: it is the value of class {name}")

    def values(self) -> range:
        """Return the values that stand for classes."""
        return range(self.first, self.first + len(self.names))

    def numbers(self, labels: UInt16[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        """Convert a source's values to class numbers, 255 where ignored.

        Raises:
            CorruptSampleError: A value is neither a class's nor ignored.
        """
        table = np.full(_VALUES, -1, np.int16)
        table[[IGNORED, *self.ignored]] = IGNORED
        table[self.values()] = range(len(self.names))
        numbers = table[labels]
        if (numbers < 0).any():
            unknown = np.unique(labels[numbers < 0])
            shown = ", ".join(map(str, unknown[:3])) + (", ..." if unknown.size > 3 else "")
            raise CorruptSampleError(
                UNKNOWN_CLASS,
                f"value {shown}, and the {len(self.names)} classes are {self.first} to "
                f"{self.values()[-1]}; --ignored takes a value that is no class",
            )
        by_pixel: UInt8[np.ndarray, "h w"] = numbers.astype(np.uint8)
        return by_pixel


def read_label_classes(
    path: str, first: int | None = None, ignored: Sequence[int] = ()
) -> LabelClasses:
    """Read a class list: a name a line, or ADE20K's objectInfo150.txt.

    In ADE20K's table the first class has the value 1, and 0 (other) is ignored; of several names
    of a class the first counts.

    Args:
        path: The list, local or remote.
        first: Map value of the first class; None: 0, or as in ADE20K's table.
        ignored: Values that are ignored, beside 255 (and 0 with ADE20K's table).

    Raises:
        UserError: It cannot be read, names a class twice or more than 255 classes, or an ignored
            value is a class's.
    """
    try:
        lines = read_file(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes: {path} cannot be read as text: {error}") from error
    header = lines[0].split("\t") if lines else []
    if (*header[:1], *header[-1:]) == _ADE20K_COLUMNS:
        names = [line.split("\t")[-1].split(",")[0] for line in lines[1:]]
        first, ignored = 1 if first is None else first, [0, *ignored]
    else:
        names = lines
    values = frozenset(ignored)
    return LabelClasses(check_names(names, f"--classes: {path}"), first or 0, values)
