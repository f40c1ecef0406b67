"""`efficientsam predict` of a classifier: the most probable classes, and a picture of them."""

from pathlib import Path

from efficientsam_pl.data.images.files import read_image_file
from efficientsam_pl.data.images.stated import exif_line
from efficientsam_pl.inference.classifier import classify, load_classifier
from efficientsam_pl.visualization.classes import ClassifiedImage, ClassShare, class_card


def run(weights: str, image: Path, out: Path) -> None:
    """Print the five most probable classes of an image and draw them in `OUT/classes.png`."""
    file = read_image_file(image)
    classes = classify(load_classifier(weights), file.pixels)
    rotated = exif_line({} if file.turn is None else {file.turn: 1})
    if rotated is not None:
        print(rotated)
    for place, entry in enumerate(classes, start=1):
        print(f"{place}. {entry.name}: {100 * entry.probability:.1f} %")
    shares = tuple(ClassShare(entry.name, entry.probability) for entry in classes)
    card = class_card(ClassifiedImage(file.pixels, shares))
    out.mkdir(parents=True, exist_ok=True)
    card.save(out / "classes.png")
    print(f"-> {out / 'classes.png'}")
