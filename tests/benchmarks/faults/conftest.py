"""A trial of a fault campaign that has gone well."""

import pytest

from benchmarks.faults.tally import Trial


@pytest.fixture
def good() -> Trial:
    return Trial(
        number=4,
        seed=0,
        kind="killed rank",
        setting="pretrain ddp",
        detail="rank 1 after step 7",
        finished=True,
        hung=False,
        restarts=1,
        lost=0,
        doubled=0,
        bit_equal=True,
        tolerance=None,
        worst=0.0,
        seconds=50.0,
        seconds_lost=20.0,
        problems=(),
    )
