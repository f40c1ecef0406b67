"""Survey an annotated set: its masks, and the entries that packing and evaluation would leave out.

The file is read as `pack coco` and `finetune` read it, and once more as `evaluate` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from efficientsam_pl.data.coco.annotation_file import (
    AnnotationFile,
    FileImage,
    Purpose,
    annotation_bytes,
    parse_annotation_file,
)
from efficientsam_pl.data.coco.annotations import Crowds, UnrasterizedInstance
from efficientsam_pl.data.coco.categories import Kind
from efficientsam_pl.data.coco.findings import UNUSABLE
from efficientsam_pl.data.coco.header_checks import HeaderCheck, check_headers
from efficientsam_pl.data.coco.records import CocoError
from efficientsam_pl.data.coco.segmentation import check_segmentation
from efficientsam_pl.data.images.stated import ExifOrientation
from efficientsam_pl.data.packing.coco import CocoEntry
from efficientsam_pl.data.packing.image_identity import image_identities
from efficientsam_pl.data.packing.left_out import reason_against
from efficientsam_pl.data.packing.split import group_equals
from efficientsam_pl.evaluation.metrics.sizes import SIZES, size_of
from efficientsam_pl.records import CorruptSample
from efficientsam_pl.rle import area, from_coco


@dataclass(frozen=True)
class SetOptions:
    """The set, and how it is read."""

    annotations: str
    images: str
    kind: Kind = "coco"
    exif_orientation: ExifOrientation = "apply"
    crowds: Crowds = "ignore"


@dataclass
class Survey:
    """Counts and findings of a set.

    Args:
        images: Images that the file lists, one for each file.
        usable_images: Images whose file exists, is readable and fits its stated size.
        objects: Masks of usable images that are no crowds and have pixels.
        crowds: Crowds of usable images.
        empty_masks: Masks of usable images without a pixel.
        without_image: Annotations of images that are missing or do not fit.
        left_out: Entries that packing leaves out.
        repairs: Entries that are used after a repair.
        turns: Images with an EXIF rotation by its treatment.
        undecided: Paths of images with a rotation that fit their annotations both ways.
        copies: Paths of equal images, a tuple for each image that exists more than once.
        categories: Objects by category name.
        sizes: Objects by COCO's sizes.
        trainable: Images with an object.
        different: Those that are no copies of another one.
        untrainable: Images without one by reason.
        evaluation: Entries that evaluation leaves out besides.
        refusal: Reason why evaluation refuses the file; empty where it does not.
    """

    images: int = 0
    usable_images: int = 0
    objects: int = 0
    crowds: int = 0
    empty_masks: int = 0
    without_image: int = 0
    left_out: list[CorruptSample] = field(default_factory=list)
    repairs: list[CorruptSample] = field(default_factory=list)
    turns: Counter[str] = field(default_factory=Counter)
    undecided: list[str] = field(default_factory=list)
    copies: list[tuple[str, ...]] = field(default_factory=list)
    categories: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(SIZES, 0)))
    trainable: int = 0
    different: int = 0
    untrainable: Counter[str] = field(default_factory=Counter)
    evaluation: list[CorruptSample] = field(default_factory=list)
    refusal: str = ""

    @property
    def annotations(self) -> int:
        """Number of annotations that belong to an image, usable or not."""
        unusable = sum(sample.key.startswith("annotation ") for sample in self.left_out)
        masks = self.objects + self.crowds + self.empty_masks
        return masks + self.without_image + unusable

    @property
    def masks(self) -> int:
        """Number of masks that are packed."""
        return self.objects + self.crowds + self.empty_masks

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong, repaired or undecided, and the set can be trained on."""
        findings = (self.left_out, self.repairs, self.evaluation, self.copies, self.undecided)
        return self.can_finetune and not (any(findings) or self.empty_masks or self.refusal)

    @property
    def can_finetune(self) -> bool:
        """Whether there is an image to train on and a different one to hold out."""
        return self.different >= 2


def survey_set(options: SetOptions) -> Survey:
    """Read a set's annotations and the headers of its images.

    Raises:
        CocoError: The file cannot be used, or none of its images exists.
    """
    content = annotation_bytes(options.annotations, options.images)
    packed = _parsed(content, options, "pack" if options.kind == "coco" else "evaluate")
    packed.check_any_exists(options.images)
    survey = Survey(
        images=len(packed.images), left_out=list(packed.corrupt), repairs=list(packed.notices)
    )
    evaluated: AnnotationFile | None = packed
    if options.kind == "coco":
        evaluated = _add_evaluation(content, options, survey)
    existing = [image for image in packed.images if image.exists]
    headers = check_headers(existing, options.exif_orientation)
    checks = {image.number: check for image, check in zip(existing, headers, strict=True)}
    category = _categories(evaluated)
    trainable = []
    for image in packed.images:
        if _add_image(image, checks.get(image.number), category, survey):
            trainable.append(image.path)
    _add_copies([image.path for image in existing], trainable, survey)
    return survey


def _parsed(content: bytes, options: SetOptions, purpose: Purpose) -> AnnotationFile:
    return parse_annotation_file(
        content,
        options.annotations,
        options.images,
        options.kind,
        crowds=options.crowds,
        purpose=purpose,
    )


def _add_evaluation(content: bytes, options: SetOptions, survey: Survey) -> AnnotationFile | None:
    """Add the entries that only evaluation leaves out; return the file as evaluation reads it."""
    try:
        file = _parsed(content, options, "evaluate")
    except CocoError as error:
        survey.refusal = str(error)
        return None
    known = {(sample.key, sample.kind) for sample in survey.left_out}
    survey.evaluation = [s for s in file.corrupt if (s.key, s.kind) not in known]
    known = {(sample.key, sample.kind) for sample in survey.repairs}
    survey.repairs += [s for s in file.notices if (s.key, s.kind) not in known]
    return file


def _categories(file: AnnotationFile | None) -> dict[tuple[int, int], str]:
    """Return the categories' names by the numbers of an image and its annotation."""
    if file is None or not file.has_categories:
        return {}
    names = {category.id: category.name for category in file.categories}
    return {
        (image.number, instance.id): names[instance.category_id]
        for image in file.images
        for instance in image.instances
        if instance.category_id in names
    }


def _add_image(
    image: FileImage,
    check: HeaderCheck | None,
    category: Mapping[tuple[int, int], str],
    survey: Survey,
) -> bool:
    """Count an image and its masks; return whether it can be trained on."""
    error = None if check is None else check.error
    if check is None or error is not None:
        survey.without_image += len(image.instances)
        if error is not None:
            survey.left_out.append(CorruptSample("", image.path, error.kind, error.detail))
        survey.untrainable["no such file" if error is None else error.kind] += 1
        return False
    survey.usable_images += 1
    if check.turn is not None:
        survey.turns[check.turn] += 1
    if check.undecided:
        survey.undecided.append(image.path)
    objects_before = survey.objects
    for instance in image.instances:
        _add_instance(image, instance, check.image_hw, category, survey)
    if survey.objects > objects_before:
        return True
    entry = CocoEntry("", image.path, image.instances, image.stated_hw, lost=image.lost)
    survey.untrainable[reason_against(entry) or "its masks are empty or cannot be used"] += 1
    return False


def _add_instance(
    image: FileImage,
    instance: UnrasterizedInstance,
    image_hw: tuple[int, int],
    category: Mapping[tuple[int, int], str],
    survey: Survey,
) -> None:
    """Count an annotation of a usable image by its mask."""
    segmentation = instance.segmentation
    try:
        if image.stated_hw is None:  # masks are unchecked then
            segmentation = check_segmentation(segmentation, image_hw)
        pixels = float(area(from_coco(segmentation, *image_hw)))
    except ValueError as error:
        key = f"annotation {instance.id}"
        survey.left_out.append(CorruptSample("", key, UNUSABLE, f"{error}, in {image.name}"))
        return
    if instance.crowd:
        survey.crowds += 1
    elif pixels == 0:
        survey.empty_masks += 1
    else:
        survey.objects += 1
        survey.sizes[size_of(pixels)] += 1
        if name := category.get((image.number, instance.id)):
            survey.categories[name] += 1


def _add_copies(paths: Sequence[str], trainable: Sequence[str], survey: Survey) -> None:
    """Add the groups of equal images, and the number of different ones to train on."""
    identities = image_identities(paths)
    groups = group_equals(identities)
    survey.copies = [tuple(paths[i] for i in group) for group in groups if len(group) > 1]
    by_path = dict(zip(paths, identities, strict=True))
    survey.trainable = len(trainable)
    survey.different = len({by_path[path] for path in trainable})
