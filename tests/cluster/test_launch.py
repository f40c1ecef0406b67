"""Detecting the launcher from the variables that real launchers set."""

from dataclasses import replace
from pathlib import Path

import pytest

from efficientsam_pl.cluster.launch import Launch, launch, note_exit, note_progress, read_launch
from efficientsam_pl.errors import UserError
from efficientsam_pl.training.config import TrainerConfig

# as `srun env` prints them on the second node of two, a task each
SRUN = {
    "SLURM_JOB_ID": "57",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "2",
    "SLURM_NODEID": "1",
}
ARRAY = {"SLURM_ARRAY_JOB_ID": "56", "SLURM_ARRAY_TASK_ID": "3"}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Launch()),
        ({"LOCAL_RANK": "1"}, Launch(rank=1)),  # a process that Lightning has started
        (SRUN, Launch("slurm", 1, 0, 2, 1, 1, "57")),
        (SRUN | ARRAY, Launch("slurm", 1, 0, 2, 1, 1, "56_3")),
        (SRUN | {"SLURM_RESTART_COUNT": "4"}, Launch("slurm", 1, 0, 2, 1, 1, "57", 4)),
        (TORCHRUN, Launch("torchrun", 5, 1, 2, 4, 1)),
        (
            TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "2"},
            Launch("torchrun", 5, 1, 2, 4, 1, None, 2),
        ),
    ],
)
def test_launch_is_told_by_the_environment(environ: dict[str, str], expected: Launch) -> None:
    assert launch(environ) == expected


def test_shell_of_an_allocation_is_no_rank() -> None:
    """sbatch sets some of srun's variables in its script's shell; salloc's may be a step itself."""
    batch = SRUN | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}
    del batch["SLURM_STEP_ID"]
    assert launch(batch) == Launch()
    assert launch(batch | {"SLURM_STEP_ID": "4294967290"}) == Launch()


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (
            SRUN | {"SLURM_NTASKS": "3", "SLURM_PROCID": "2"},
            r"slurm has started 3 ranks on 2 nodes \(unevenly\); .*--ntasks-per-node=N",
        ),
        (
            SRUN | {"SLURM_NTASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "3,1"},
            r"slurm has started 4 ranks on 2 nodes \(3,1\)",
        ),
        (
            TORCHRUN | {"WORLD_SIZE": "6", "GROUP_WORLD_SIZE": "2"},
            r"torchrun has started 6 ranks on 2 nodes \(4 here\); .*--nproc-per-node=N",
        ),
        (
            TORCHRUN | {"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"},
            r"torchrun has started 6 ranks on 2 nodes \(2 here\)",
        ),
    ],
)
def test_nodes_with_different_numbers_of_ranks_are_refused(
    environ: dict[str, str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        launch(environ)
    assert read_launch(environ).rank == int(environ.get("SLURM_PROCID", environ.get("RANK", "")))


@pytest.mark.parametrize(
    "environ",
    [
        SRUN | {"SLURM_NTASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
        TORCHRUN | {"GROUP_WORLD_SIZE": "2"},
    ],
)
def test_nodes_with_equal_numbers_of_ranks_are_accepted(environ: dict[str, str]) -> None:
    assert launch(environ).nodes == 2


@pytest.mark.parametrize(
    ("nodes", "devices", "micro_batch"),
    [
        (1, 1, 32),
        (2, 8, 8),  # 128 photos over 16 ranks
        (3, 1, None),  # 128 is no multiple of 3
        (1, 128, 1),
        (4, 2, 16),
    ],
)
def test_ranks_share_the_global_batch(nodes: int, devices: int, micro_batch: int | None) -> None:
    config = TrainerConfig(global_batch=128, micro_batch=32)
    started = Launch("slurm", nodes=nodes, ranks_per_node=devices)
    if micro_batch is None:
        with pytest.raises(UserError, match=r"global_batch=128 cannot be shared by 3 ranks"):
            config.on(started)
        return
    found = config.on(started)
    assert (found.nodes, found.devices, found.micro_batch) == (nodes, devices, micro_batch)
    assert found.micro_batch * found.accumulate() * nodes * devices == 128


def test_config_that_contradicts_the_launch_is_refused_with_both_numbers() -> None:
    config = TrainerConfig(nodes=2, devices=4, micro_batch=1)
    started = Launch("slurm", nodes=2, ranks_per_node=4)
    assert config.on(started).world_size() == 8
    with pytest.raises(UserError, match=r"trainer\.nodes=2, but slurm has started 3 nodes"):
        config.on(replace(started, nodes=3))
    with pytest.raises(UserError, match=r"trainer\.devices=4, but torchrun has started 1 rank"):
        config.on(Launch("torchrun", nodes=2, ranks_per_node=1))


def test_batch_script_is_told_how_far_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_progress(3)  # nobody wants to know
    monkeypatch.setenv("EFFICIENTSAM_JOB_STATE", str(tmp_path / "state"))
    note_progress(3)
    note_progress(12)
    note_exit(75)
    notes = {path.name: path.read_text() for path in (tmp_path / "state").iterdir()}
    assert notes == {"progress": "12\n", "exit": "75\n"}
