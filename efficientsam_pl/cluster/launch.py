"""Detect how this process was launched: by srun, torchrun, or a person. Imports no torch.

The program reports to its batch script through files in the folder that `EFFICIENTSAM_JOB_STATE`
names: `progress`, the last step (or shard, or image) that was saved; `exit`, the exit code, since
srun's own code is that of whichever rank was killed last; and `requeue`, if the script is to
requeue the job after code 75.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from efficientsam_pl.errors import UserError

# Exit codes of a run that saved and stopped on request, and of Ctrl-C
STOPPED, INTERRUPTED = 75, 130
_STATE = "EFFICIENTSAM_JOB_STATE"
# From here on, SLURM's step ids are reserved, for example for the shells of sbatch and salloc
_RESERVED_STEPS = 0xFFFF_FFF0


@dataclass(frozen=True)
class Launch:
    """Number of processes, and the rank of this one."""

    kind: Literal["slurm", "torchrun", "person"] = "person"
    rank: int = 0
    local_rank: int = 0
    nodes: int = 1
    ranks_per_node: int = 1
    node: int = 0
    job: str | None = None  # SLURM's id, including the task of an array
    restarts: int = 0  # earlier starts of the same job


def launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """Read this process's launch from the environment set by srun or torchrun.

    Raises:
        UserError: Nodes have different numbers of ranks, which neither Lightning nor an evaluation
            supports.
    """
    launched = read_launch(environ)
    uneven = _uneven_ranks(launched, environ)
    if uneven:
        remedy = "--nproc-per-node=N" if launched.kind == "torchrun" else "--ntasks-per-node=N"
        raise UserError(
            f"{launched.kind} has started {uneven}; all nodes need the same number: {remedy}"
        )
    return launched


def read_launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """Read the launch without checking that nodes have equally many ranks, for use at exit.

    The shell of sbatch or salloc is no rank, however many tasks were requested: a command that is
    run there without srun is a single process.
    """
    step = int(environ.get("SLURM_STEP_ID", _RESERVED_STEPS))
    if step < _RESERVED_STEPS and "SLURM_PROCID" in environ:
        array = environ.get("SLURM_ARRAY_JOB_ID")
        job = f"{array}_{environ['SLURM_ARRAY_TASK_ID']}" if array else environ["SLURM_JOB_ID"]
        nodes = int(environ["SLURM_NNODES"])
        return Launch(
            "slurm",
            rank=int(environ["SLURM_PROCID"]),
            local_rank=int(environ["SLURM_LOCALID"]),
            nodes=nodes,
            ranks_per_node=int(environ["SLURM_NTASKS"]) // nodes,
            node=int(environ["SLURM_NODEID"]),
            job=job,
            restarts=int(environ.get("SLURM_RESTART_COUNT", "0")),
        )
    if "TORCHELASTIC_RUN_ID" in environ:
        local = int(environ["LOCAL_WORLD_SIZE"])
        return Launch(
            "torchrun",
            rank=int(environ["RANK"]),
            local_rank=int(environ["LOCAL_RANK"]),
            nodes=int(environ["WORLD_SIZE"]) // local,
            ranks_per_node=local,
            node=int(environ["GROUP_RANK"]),
            restarts=int(environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        )
    return Launch(rank=int(environ.get("LOCAL_RANK", "0")))  # Lightning's own child processes


def _uneven_ranks(launched: Launch, environ: Mapping[str, str]) -> str:
    """Describe an uneven number of ranks, such as `3 ranks on 2 nodes (2,1)`; "" if even."""
    nodes, local = launched.nodes, launched.ranks_per_node
    if launched.kind == "slurm":
        ranks = int(environ["SLURM_NTASKS"])
        by_node = environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # such as 2(x3),1
        even = ranks == nodes * local and "," not in by_node
        return "" if even else f"{ranks} ranks on {nodes} nodes ({by_node or 'unevenly'})"
    if launched.kind == "torchrun":
        ranks, nodes = int(environ["WORLD_SIZE"]), int(environ.get("GROUP_WORLD_SIZE", nodes))
        return "" if ranks == nodes * local else f"{ranks} ranks on {nodes} nodes ({local} here)"
    return ""


def note_progress(step: int) -> None:
    """Report to the batch script, if any, that a step (or shard, or image) is saved."""
    _note("progress", step)


def note_exit(code: int, requeue: bool = False) -> None:
    """Report this program's exit code to the batch script, if any.

    Args:
        code: The exit code.
        requeue: Whether the script is to requeue the job, as it does after a fault.
    """
    if requeue:
        _note("requeue", 1)
    _note("exit", code)


def report_to_torchrun(line: str, environ: Mapping[str, str] = os.environ) -> None:
    """Write the reason for exiting to torchrun's error file, if torchrun started this process."""
    file = environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        message = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": message}))


def _note(name: str, number: int) -> None:
    folder = os.environ.get(_STATE)
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    partial = Path(folder) / f".{name}.{os.getpid()}"
    partial.write_text(f"{number}\n")
    partial.replace(Path(folder) / name)
