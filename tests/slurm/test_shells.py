"""A command in an allocation's shell, without srun, is one process and waits for nobody."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.faults.toy_runs import Setting, Toy
from benchmarks.faults.trial_site import environment

NODES = ["--nodes=2", "--ntasks-per-node=1", "--quiet"]
PRINTED = (
    f"{sys.executable} -c 'from efficientsam_pl.cluster.launch import launch; print(launch())'"
)


def allocated(way: str, command: str, folder: Path) -> str:
    """Return the output of a command in the shell of two nodes."""
    given: Mapping[str, str] = {**os.environ, **environment()}
    if way == "salloc":
        line = ["salloc", *NODES, "bash", "-c", command]
    else:
        line = ["sbatch", *NODES, "--wait", "--output=out", f"--wrap={command}"]
    done = subprocess.run(
        line, cwd=folder, env=given, capture_output=True, text=True, timeout=180, check=False
    )
    output = done.stdout if way == "salloc" else (folder / "out").read_text()
    assert done.returncode == 0, f"{output}\n{done.stderr}"
    return output


@pytest.mark.parametrize("way", ["salloc", "sbatch"])
def test_shell_is_no_rank_but_what_srun_starts_is(way: str, tmp_path: Path) -> None:
    output = allocated(way, f"{PRINTED}; echo; srun {PRINTED}", tmp_path)
    shell, ranks = output.strip().split("\n\n")
    assert "kind='person', rank=0, local_rank=0, nodes=1, ranks_per_node=1" in shell
    lines = sorted(ranks.splitlines())
    assert len(lines) == 2
    for rank, line in enumerate(lines):
        assert f"kind='slurm', rank={rank}, local_rank=0, nodes=2, ranks_per_node=1" in line


@pytest.mark.parametrize("way", ["salloc", "sbatch"])
def test_training_without_srun_is_one_process(way: str, toy: Toy, tmp_path: Path) -> None:
    given = toy.arguments(Setting(stage="finetune", strategy="ddp"), tmp_path / "run")
    given += ["trainer.max_steps=2", "optim.warmup_steps=1"]
    allocated(way, f"{sys.executable} -m efficientsam_pl finetune {' '.join(given)}", tmp_path)
    lines = (tmp_path / "run" / "consumed.jsonl").read_text().splitlines()
    assert {(line["step"], line["rank"]) for line in map(json.loads, lines)} == {(0, 0), (1, 0)}
