"""`efficientsam predict` of a semantic segmenter: a label map, and a picture of it."""

from pathlib import Path

import numpy as np

from efficientsam_pl.data.images.files import read_image_file
from efficientsam_pl.data.images.label_map import encode_label_map
from efficientsam_pl.data.images.stated import exif_line
from efficientsam_pl.inference.semantic import load_semantic, segment_image
from efficientsam_pl.storage.atomic import atomic_write_bytes
from efficientsam_pl.visualization.label_map import SegmentedPicture, label_map_card

_PRINTED = 10  # classes


def run(weights: str, image: Path, out: Path) -> None:
    """Print the classes of an image by their share of it.

    Class numbers are written to `OUT/labels.png`, their picture to `OUT/classes.png`.
    """
    file = read_image_file(image)
    model = load_semantic(weights)
    labels = segment_image(model, file.pixels).labels.cpu().numpy()
    rotated = exif_line({} if file.turn is None else {file.turn: 1})
    if rotated is not None:
        print(rotated)
    names = tuple(model.config.label(number) for number in range(model.config.classes))
    counts = np.bincount(labels.ravel(), minlength=len(names))
    order = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
    for number in order[:_PRINTED]:
        print(f"{100 * counts[number] / labels.size:5.1f} %  {names[number]}")
    if len(order) > _PRINTED:
        rest = counts[order[_PRINTED:]].sum() / labels.size
        print(f"{100 * rest:5.1f} %  {len(order) - _PRINTED} more")
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(out / "labels.png", encode_label_map(labels))
    label_map_card(SegmentedPicture(file.pixels, labels, None, names)).save(out / "classes.png")
    print(f"-> {out / 'classes.png'}; class numbers in {out / 'labels.png'}")
