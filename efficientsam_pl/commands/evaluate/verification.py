"""Check that the images of an evaluation are those that its records were made of."""

from collections.abc import Callable, Collection, Mapping
from typing import Protocol, runtime_checkable

from efficientsam_pl.data.datasets.image_sources import ImageFingerprint, prefetch
from efficientsam_pl.plural import counted

# threads that read and hash, and results that may wait; a hash takes 1.3 ms/MB of a thread
_READERS, _AHEAD = 4, 64
_NAMED = 3  # files in a message


@runtime_checkable
class ReadAgain(Protocol):
    """Images whose stored bytes can be read again by their numbers."""

    def is_there(self, number: int) -> bool:
        """Return whether the image is at hand."""
        ...

    def fingerprint(self, number: int) -> ImageFingerprint:
        """Read and hash the stored bytes of an image."""
        ...


def changed_images(
    photos: ReadAgain,
    hashes: Mapping[int, str],
    numbers: Collection[int],
    each: Callable[[], None] = lambda: None,
) -> str:
    """Describe the images whose stored bytes are no longer those that were scored; "" if none.

    Args:
        photos: The images as they are now.
        hashes: Hashes of the scored images by number; those that are missing now are named too.
        numbers: Images to read again.
        each: Called after each image; may raise.
    """
    gone = sorted(number for number in hashes if not photos.is_there(number))
    changed = []
    for number, now in zip(
        numbers, prefetch(photos.fingerprint, numbers, _READERS, _AHEAD), strict=True
    ):
        if now.sha256 != hashes[number]:
            changed.append(now.name)
        each()
    texts = []
    if changed:
        texts.append(f"{counted(len(changed), 'image')} changed, such as {_first(changed)}")
    if gone:
        names = _first([f"image {number}" for number in gone])
        texts.append(f"{counted(len(gone), 'scored image')} missing, such as {names}")
    return "; ".join(texts)


def _first(names: list[str]) -> str:
    return ", ".join(sorted(names)[:_NAMED])
