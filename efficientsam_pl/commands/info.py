"""`efficientsam info`: versions, devices, extras and folders for a bug report."""

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
_VARIABLES = (  # environment variables that influence a run
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "SLURM_JOB_ID",
    "TORCHELASTIC_RUN_ID",
    "WORLD_SIZE",
    "XDG_CACHE_HOME",
)


@dataclass(frozen=True)
class Extra:
    """An optional dependency group of pyproject.toml: its purpose and packages."""

    purpose: str
    packages: tuple[str, ...]


EXTRAS = {
    "quickstart": Extra("efficientsam quickstart", ("scikit-image", "matplotlib", "jinja2")),
    "figure": Extra("efficientsam figure, curves of an evaluation", ("matplotlib",)),
    "s3": Extra("shards and runs at s3://", ("s3fs",)),
    "wandb": Extra("trainer.logger=wandb", ("wandb",)),
    "bench": Extra(
        "decoders, probe and reference models of the benchmarks",
        ("opencv-python-headless", "scikit-learn", "transformers"),
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
    """Print the report."""
    report = info()
    print(json.dumps(report, indent=1) if as_json else "\n".join(_lines(report)))


def info() -> dict[str, Any]:
    """Collect the report as plain values."""
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
    """Return the commit of a clone; None without a clone or git."""
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
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
    devices: dict[str, Any] = {"cpu": cpu, "cuda": torch.version.cuda, "gpus": []}
    try:
        for number in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(number)
            memory = round(gpu.total_memory / 2**30, 1)
            devices["gpus"].append({"name": gpu.name, "memory_gib": memory})
    except RuntimeError as error:  # an incompatible driver
        devices["trouble"] = f"GPUs cannot be used: {' '.join(str(error).split())}"
    return devices


def _lines(report: dict[str, Any]) -> list[str]:
    devices = report["devices"]
    cpu = devices["cpu"]
    threads = f", {cpu['threads']} threads of torch" if "threads" in cpu else ""
    cuda = f" (torch is built for CUDA {devices['cuda']})" if devices.get("cuda") else ""
    gpus = [f"{gpu['name']}, {gpu['memory_gib']} GiB" for gpu in devices["gpus"]]
    rows = [(name, value) for name, value in report["versions"].items() if value is not None]
    rows += report["platform"].items()
    rows.append(("CPU", f"{cpu['cores']} cores, {cpu['usable']} usable{threads}"))
    rows += [(f"GPU {number}", gpu) for number, gpu in enumerate(gpus)] or [("GPU", f"none{cuda}")]
    rows += [("trouble", devices["trouble"])] if "trouble" in devices else []
    for name, extra in report["extras"].items():
        status = "installed" if extra["installed"] else f"without {', '.join(extra['missing'])}"
        rows.append((f"extra {name}", f"{status} ({extra['purpose']})"))
    rows += report["folders"].items()
    rows += report["environment"].items()
    return [f"{name:<22}{value}" for name, value in rows]
