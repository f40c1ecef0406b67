"""The benchmark's two steps are of one backbone, and it reports what it promises."""

from dataclasses import replace

from benchmarks.downstream.detection import measure_step, tiny_config


def test_rows_have_references() -> None:
    config = tiny_config(side=64, sampled=8)
    small = replace(config.vit, width=24, depth=2, heads=3, global_blocks=(1,))
    config = replace(config, vit=small, channels=8, classes=3)
    rows = {row.id: row for row in measure_step(config, rounds=1, seconds=60, memory=False)}
    assert rows["downstream.detection_step"].reference is not None
    assert rows["downstream.detection_step"].goal == 1.05
