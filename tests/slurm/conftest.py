"""Fixtures of jobs on the cluster of slurm/local_cluster.sh: shards, and undisturbed runs."""

import os
import random
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from benchmarks.faults.reference import Reference, reference_run
from benchmarks.faults.toy_runs import Setting, Toy, build_toy
from benchmarks.faults.trial_site import Site

HERE = Path(__file__).parent
DEADLINE_S = 300.0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = pytest.mark.skip(reason="no SLURM cluster: `make test-slurm` starts one")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("slurm")
            if "SLURM_CONF" not in os.environ:
                item.add_marker(absent)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return build_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def reference(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Setting], Reference]:
    """The run of a setting that nothing disturbs, made once."""
    folder = tmp_path_factory.mktemp("references")
    return cache(lambda setting: reference_run(toy, setting, folder))


@pytest.fixture
def site_of(
    toy: Toy, reference: Callable[[Setting], Reference], tmp_path: Path
) -> Iterator[Callable[[Setting, object], Site]]:
    """site_of(setting, seed): a run's place; the seed draws when and what strikes."""
    sites: list[Site] = []

    def site(setting: Setting, seed: object) -> Site:
        pace = reference(setting).pace
        draw = random.Random(repr(seed))
        sites.append(Site(toy, setting, tmp_path, draw, time.monotonic() + DEADLINE_S, pace))
        return sites[-1]

    yield site
    for job in (job for site in sites for job in site.jobs):
        job.cancel()
