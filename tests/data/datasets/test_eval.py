"""Evaluation images: valid ones are scored, corrupt ones reported."""

from efficientsam_pl.data.dataloaders import AnnotatedImage, annotated_images
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.records import CorruptSample


def test_evaluation_separates_corrupt_images_from_scored_ones(
    corrupt: tuple[ShardSet, dict[str, str]],
) -> None:
    index, kinds = corrupt
    items = list(annotated_images(index))
    assert [i.key for i in items if isinstance(i, AnnotatedImage)] == ["good"]
    broken = {i.key: i.kind for i in items if isinstance(i, CorruptSample)}
    assert broken.keys() == kinds.keys()
    assert broken == kinds
