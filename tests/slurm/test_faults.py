"""Real two-node jobs that are hit by what hits jobs: each is what it would have been without."""

from collections.abc import Callable

import pytest

from benchmarks.faults.injection import KINDS, LOOSE, TOLERANCE, run_fault
from benchmarks.faults.reference import Reference
from benchmarks.faults.toy_runs import STEPS, Setting
from benchmarks.faults.trial_site import Site
from benchmarks.faults.verdict import compare

SETTINGS = (
    Setting(stage="pretrain", strategy="ddp"),
    Setting(stage="finetune", strategy="fsdp", writing="background"),
)


@pytest.mark.parametrize("setting", SETTINGS, ids=Setting.name)
def test_plain_run_uses_every_sample_of_an_epoch_once(
    setting: Setting, reference: Callable[[Setting], Reference]
) -> None:
    run = reference(setting).run
    verdict = compare(run, run, None)
    assert verdict.accepted(), verdict.problems
    assert verdict.steps == STEPS
    assert (run.parent / "jobs").is_dir()


# "undisturbed" is what the other kinds are compared with
@pytest.mark.parametrize(
    ("number", "kind"), [(n, kind) for n, kind in enumerate(KINDS) if kind != "undisturbed"]
)
def test_disturbed_run_is_the_undisturbed_one(
    number: int,
    kind: str,
    site_of: Callable[[Setting, object], Site],
    reference: Callable[[Setting], Reference],
    mount_disk: Callable[[], object],
) -> None:
    if kind == "full disk":
        mount_disk()  # skips where none may be
    setting = SETTINGS[number % 2]
    site = site_of(setting, kind)
    run_fault(kind, site)
    verdict = compare(site.run, reference(setting).run, TOLERANCE if kind in LOOSE else None)
    assert verdict.accepted(), verdict.problems
    assert (verdict.steps, verdict.lost, verdict.doubled) == (STEPS, 0, 0)
