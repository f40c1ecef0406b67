"""`efficientsam info`: versions, devices, extras and folders, as a bug report needs them."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efficientsam_pl.config.shipped import config_folders
from efficientsam_pl.versions import ABSENT, package_version, versions

_PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "timm",
    "torchmetrics",
    "omegaconf",
    "numpy",
    "pillow",
    "simplejpeg",
    "pycocotools",
    "webdataset",
    "fsspec",
    "safetensors",
    "tensorboard",
)
_VARIABLES = (  # that change what a run does
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "SLURM_JOB_ID",
    "TORCHELASTIC_RUN_ID",
    "WORLD_SIZE",
    "XDG_CACHE_HOME",
)


@dataclass(frozen=True)
class Extra:
    """What pyproject.toml offers beside the dependencies: what for, and the packages."""

    purpose: str
    packages: tuple[str, ...]


EXTRAS = {
    "quickstart": Extra("efficientsam quickstart", ("scikit-image", "matplotlib", "jinja2")),
    "figure": Extra("efficientsam figure, curves of an evaluation", ("matplotlib",)),
    "s3": Extra("shards and runs at s3://", ("s3fs",)),
    "wandb": Extra("trainer.logger=wandb", ("wandb",)),
    "bench": Extra(
        "decoders and probe of the benchmarks", ("opencv-python-headless", "scikit-learn")
    ),
    "dev": Extra(
        "tests and checks",
        (
            "beartype",
            "import-linter",
            "lvis",
            "moto",
            "mypy",
            "pytest",
            "pytest-xdist",
            "ruff",
            "scikit-learn",
            "selenium",
        ),
    ),
}


def run(*, as_json: bool) -> None:
    """Prints it."""
    told = info()
    print(json.dumps(told, indent=1) if as_json else "\n".join(_lines(told)))


def info() -> dict[str, Any]:
    """All of it as plain values."""
    package = Path(__file__).parents[1]
    return {
        "versions": {
            "efficientsam_pl": package_version(),
            "commit": _commit(package.parent),
            "python": platform.python_version(),
            **versions(*_PACKAGES),
        },
        "platform": {"system": platform.platform(), "machine": platform.machine()},
        "devices": _devices(),
        "extras": {name: asdict(extra) | _installed(extra) for name, extra in EXTRAS.items()},
        "folders": {
            "python": sys.executable,
            "package": str(package),
            "configs": str(next(iter(config_folders()), None)),
        },
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _installed(extra: Extra) -> dict[str, Any]:
    missing = [name for name, v in versions(*extra.packages).items() if v == ABSENT]
    return {"installed": not missing, "missing": missing}


def _commit(folder: Path) -> str | None:
    """Of a clone; None where there is none, or no git."""
    if not (folder / ".git").exists():
        return None
    try:
        asked = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
        done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _devices() -> dict[str, Any]:
    cpu: dict[str, Any] = {"cores": os.cpu_count(), "usable": len(os.sched_getaffinity(0))}
    try:
        import torch
    except (ImportError, OSError) as error:  # a broken installation is what the report is about
        reason = " ".join(str(error).split())
        return {"cpu": cpu, "gpus": [], "trouble": f"torch cannot be imported: {reason}"}
    cpu["threads"] = torch.get_num_threads()
    found: dict[str, Any] = {"cpu": cpu, "cuda": torch.version.cuda, "gpus": []}
    try:
        for number in range(torch.cuda.device_count()):
            one = torch.cuda.get_device_properties(number)
            memory = round(one.total_memory / 2**30, 1)
            found["gpus"].append({"name": one.name, "memory_gib": memory})
    except RuntimeError as error:  # a driver that does not fit
        found["trouble"] = f"GPUs cannot be used: {' '.join(str(error).split())}"
    return found


def _lines(told: dict[str, Any]) -> list[str]:
    devices = told["devices"]
    cpu = devices["cpu"]
    threads = f", {cpu['threads']} threads of torch" if "threads" in cpu else ""
    cuda = f" (torch is built for CUDA {devices['cuda']})" if devices.get("cuda") else ""
    gpus = [f"{one['name']}, {one['memory_gib']} GiB" for one in devices["gpus"]]
    rows = [(name, value) for name, value in told["versions"].items() if value is not None]
    rows += told["platform"].items()
    rows.append(("CPU", f"{cpu['cores']} cores, {cpu['usable']} usable{threads}"))
    rows += [(f"GPU {number}", one) for number, one in enumerate(gpus)] or [("GPU", f"none{cuda}")]
    rows += [("trouble", devices["trouble"])] if "trouble" in devices else []
    for name, extra in told["extras"].items():
        there = "installed" if extra["installed"] else f"without {', '.join(extra['missing'])}"
        rows.append((f"extra {name}", f"{there} ({extra['purpose']})"))
    rows += told["folders"].items()
    rows += told["environment"].items()
    return [f"{name:<22}{value}" for name, value in rows]
