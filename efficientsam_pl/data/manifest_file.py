"""The file `manifest.json` in a folder of shards, which may be another program's."""

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import exists, read_json_file

MANIFEST = "manifest.json"
FORMAT = "efficientsam_pl manifest"
_FORMAT_WITHIN = 200  # bytes; the format is the first key


def read_manifest_file(place: str) -> bytes | None:
    """Read a manifest; None where there is no file, or another program's."""
    data = read_json_file(place) if exists(place) else None
    ours = data is not None and f'"format": "{FORMAT}"'.encode() in data[:_FORMAT_WITHIN]
    return data if ours else None


def is_foreign(place: str) -> bool:
    """Return whether a file of another program has the place of a manifest."""
    return exists(place) and read_manifest_file(place) is None


def refuse_foreign(place: str) -> None:
    """Raise UserError where a manifest would replace a file of another program."""
    if is_foreign(place):
        raise UserError(
            f"{place} is not of this program and would be replaced; name another folder"
        )
