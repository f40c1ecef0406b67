import pytest

from efficientsam_pl.records import CorruptSample
from efficientsam_pl.training.callbacks.corrupt_sample_log import CorruptSampleLog


def test_first_corrupt_samples_are_named_and_the_rest_pointed_to(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = CorruptSampleLog(2, "the others stand in report.json")
    log.warn([CorruptSample("a.tar", "", "empty shard", "it holds no sample")])
    log.warn([CorruptSample("b.tar", key, "bad photo", "cut") for key in "xyz"])
    assert caplog.messages == [
        "a.tar: empty shard (it holds no sample)",
        "b.tar x: bad photo (cut)",
        "the others stand in report.json",
    ]
