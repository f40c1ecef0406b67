"""The file `manifest.json` in a folder of shards, which may be another program's."""

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import exists, read_head, read_json_file

MANIFEST = "manifest.json"
FORMAT = "efficientsam_pl manifest"
_FORMAT_WITHIN = 200  # bytes; the format is the first key


def read_manifest_file(place: str) -> bytes | None:
    """Read a manifest; None where there is no file, or another program's."""
    data = read_json_file(place) if exists(place) else None
    return data if data is not None and _is_ours(data) else None


def is_foreign(place: str) -> bool:
    """Return whether a file of another program has the place of a manifest."""
    return exists(place) and not _is_ours(read_head(place, _FORMAT_WITHIN))


def refuse_foreign(place: str) -> None:
    """Raise UserError where a manifest would replace a file of another program."""
    if is_foreign(place):
        raise UserError(
            f"{place} is not of this program and would be replaced; name another folder"
        )


def _is_ours(data: bytes) -> bool:
    return (
        data.lstrip().startswith(b"{") and f'"format": "{FORMAT}"'.encode() in data[:_FORMAT_WITHIN]
    )
