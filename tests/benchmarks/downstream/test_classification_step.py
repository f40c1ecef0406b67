"""The benchmark's two steps are of one model, and it reports what it promises."""

from benchmarks.downstream.classification import measure_step
from efficientsam_pl.models.classifier_config import ClassifierConfig
from efficientsam_pl.models.config import EncoderConfig

TINY = ClassifierConfig(
    vit=EncoderConfig(width=24, depth=2, heads=3, image_size=32, position_grid=2),
    classes=5,
    drop_path=0.1,
)


def test_rows_have_references_and_the_models_agree() -> None:
    rows = {row.id: row for row in measure_step(TINY, 4, rounds=2, seconds=60, memory=False)}
    assert rows["downstream.classify_step"].reference is not None
    assert rows["downstream.classify_step"].goal == 1.05
    assert rows["downstream.classify_difference"].value < 1e-5
