"""Who started this process: SLURM's srun, torchrun, or a person. Imports no torch.

A batch script and the program inside it tell each other two things through files in the folder
that `EFFICIENTSAM_JOB_STATE` names: `progress`, the newest step (or shard, or photo) that is saved,
and `exit`, how the program ended, since srun's own code is that of whichever rank was killed last.
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

# Exit codes: of a run that was stopped early on request, and has saved; and of Ctrl-C
STOPPED, INTERRUPTED = 75, 130
_STATE = "EFFICIENTSAM_JOB_STATE"
# SLURM's own numbers of steps that no one has started: the shells of sbatch and salloc, say
_RESERVED_STEPS = 0xFFFF_FFF0


@dataclass(frozen=True)
class Launch:
    """How many processes there are, and which of them this is."""

    kind: Literal["slurm", "torchrun", "person"] = "person"
    rank: int = 0
    local_rank: int = 0
    nodes: int = 1
    ranks_per_node: int = 1
    node: int = 0
    job: str | None = None  # SLURM's id, with the task's number where it is an array's
    restarts: int = 0  # starts of this very job before this one


def launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """This process's launch, by the variables that srun or torchrun has set.

    Raises:
        UserError: Nodes have different numbers of ranks, which neither Lightning nor the shares
            of an evaluation can number.
    """
    launched = read_launch(environ)
    uneven = _uneven_ranks(launched, environ)
    if uneven:
        remedy = "--nproc-per-node=N" if launched.kind == "torchrun" else "--ntasks-per-node=N"
        raise UserError(
            f"{launched.kind} has started {uneven}; every node must have as many: {remedy}"
        )
    return launched


def read_launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """`launch`, without the check that all nodes have as many ranks: for the end of a program.

    A shell of sbatch's or salloc's is no rank, however many tasks were asked for: what a person
    types there without srun is one process.
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
    """Numbers of ranks that differ between nodes, such as `3 ranks on 2 nodes (2,1)`; else ""."""
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
    """Tells the batch script, where there is one, that a step (or shard, or photo) is saved."""
    _note("progress", step)


def note_exit(code: int) -> None:
    """Tells the batch script, where there is one, how this program ends."""
    _note("exit", code)


def tell_torchrun(line: str, environ: Mapping[str, str] = os.environ) -> None:
    """Has torchrun, where it has started this process, say at its end why the process has ended."""
    file = environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        told = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": told}))


def _note(name: str, number: int) -> None:
    folder = os.environ.get(_STATE)
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    paused = Path(folder) / f".{name}.{os.getpid()}"
    paused.write_text(f"{number}\n")
    paused.replace(Path(folder) / name)
