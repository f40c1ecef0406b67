"""User errors: one line before training starts, and no restart."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import efficientsam_pl
from benchmarks.faults.reference import Reference
from benchmarks.faults.slurm_jobs import submit
from benchmarks.faults.toy_runs import Setting, Toy
from benchmarks.faults.trial_site import environment

FINETUNE = Setting(stage="finetune", strategy="ddp")
FSDP = Setting(stage="finetune", strategy="fsdp")
PRETRAIN = Setting(stage="pretrain", strategy="ddp")
DEADLINE_S = 120.0


@dataclass(frozen=True)
class Refusal:
    """End of a job that was refused."""

    code: int
    restarts: int
    logged: list[str]  # lines of the program, over both ranks
    log: str


Refused = Callable[..., Refusal]


@pytest.fixture
def refused(toy: Toy, tmp_path: Path) -> Refused:
    """refused(setting, *overrides, python="..."): end of a two-node job."""

    def run(setting: Setting, *overrides: str, python: Path | None = None) -> Refusal:
        given = dict(environment())
        if python is not None:
            given["EFFICIENTSAM_PYTHON"] = str(python)
        arguments = [*toy.arguments(setting, tmp_path / "run"), *overrides]
        job = submit(setting.stage, arguments, folder=tmp_path, environment=given)
        code, log = job.wait(DEADLINE_S), job.log()
        logged = [line for line in log.splitlines() if line.startswith("efficientsam: ")]
        return Refusal(code, job.restarts(), logged, log)

    return run


def is_refused(outcome: Refusal, *sentence: str) -> None:
    assert outcome.code == 2, outcome.log
    assert outcome.restarts == 0
    assert len(outcome.logged) == 1, outcome.log
    for part in sentence:
        assert part in outcome.logged[0]
    assert "Traceback" not in outcome.log
    assert "images/s" not in outcome.log


@pytest.mark.parametrize(
    ("setting", "override", "sentence"),
    [
        (FINETUNE, "trainer.nodes=1", "trainer.nodes=1, but slurm has started 2 nodes"),
        (FSDP, "trainer.devices=2", "trainer.devices=2, but slurm has started 1 rank a node"),
        (PRETRAIN, "trainer.global_batch=3 trainer.micro_batch=1", "cannot be shared by 2 ranks"),
        (FINETUNE, "trainer.accelerator=gpu", "0 GPUs can be seen in this allocation"),
        (PRETRAIN, "data.train=/nowhere/*.tar", "/nowhere/*.tar"),
        (FINETUNE, "interruption.save_before_limit_s=7200", "give it more time"),
    ],
    ids=lambda given: given.name() if isinstance(given, Setting) else given.split("=")[0],
)
def test_job_is_refused(refused: Refused, setting: Setting, override: str, sentence: str) -> None:
    is_refused(refused(setting, *override.split()), sentence)


def test_run_of_another_config_is_refused_with_the_difference(
    refused: Refused, reference: Callable[[Setting], Reference], tmp_path: Path
) -> None:
    shutil.copytree(reference(PRETRAIN).run, tmp_path / "run")
    outcome = refused(PRETRAIN, "optim.weight_decay=0.3")
    is_refused(outcome, "holds a run of another config", "optim.weight_decay", "0.3")


def test_folder_that_cannot_be_written_is_refused(
    refused: Refused, tmp_path: Path, mount_disk: Callable[..., Any]
) -> None:
    (tmp_path / "file").touch()
    is_refused(
        refused(FINETUNE, f"run.dir={tmp_path}/file/run"),
        "run.dir: cannot be written",
        "Not a directory",
    )
    disk = mount_disk(options="ro")
    is_refused(
        refused(FINETUNE, f"run.dir={disk.path}/run"), "run.dir: cannot be written", "Read-only"
    )


@pytest.mark.parametrize(
    ("setting", "difference", "sentence"),
    [
        (FSDP, 'set -- "$@" optim.weight_decay=0.3', "config.optim.weight_decay is 0.3 there"),
        (PRETRAIN, "export PYTHONPATH={other}", "code of efficientsam_pl is"),
    ],
)
def test_unlike_ranks_do_not_train(
    refused: Refused, tmp_path: Path, setting: Setting, difference: str, sentence: str
) -> None:
    package = Path(efficientsam_pl.__file__).parent
    shutil.copytree(package, tmp_path / "other" / package.name)
    with (tmp_path / "other" / package.name / "rle.py").open("a") as file:
        file.write("# changed\n")
    python = tmp_path / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        f'if [ "$SLURM_NODEID" = 1 ]; then {difference.format(other=tmp_path / "other")}; fi\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    is_refused(refused(setting, python=python), "rank 1 on ", "does not run what rank 0", sentence)
