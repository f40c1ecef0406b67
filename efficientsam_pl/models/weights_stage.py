"""The stage that wrote a weights file, read from its header. Imports no torch."""

import json
from pathlib import Path

_LENGTH_BYTES = 8
_LARGEST_HEADER = 100 * 2**20  # of the safetensors format


def stage_of(path: str | Path) -> str | None:
    """Return the name of the stage, such as `classify`; None for a file that states none."""
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if not 2 <= length <= _LARGEST_HEADER:
                return None
            metadata = json.loads(file.read(length))["__metadata__"]
        stage = json.loads(metadata["provenance"])["stage"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # another file: whoever reads it whole says what is wrong
    return stage if isinstance(stage, str) else None
