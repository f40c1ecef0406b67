"""Name the start of an evaluation's ranks, choose their devices, stop them on request."""

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from efficientsam_pl.cluster.devices import chosen_device
from efficientsam_pl.cluster.launch import Launch, launch
from efficientsam_pl.cluster.signals import Request, StopRequests
from efficientsam_pl.cluster.slurm import requeue
from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.errors import SavedAndStopped
from efficientsam_pl.evaluation.results.journal import ResultJournal
from efficientsam_pl.plural import counted


def start_name() -> str:
    """Name this start of all ranks, alike on each of them."""
    rank = launch()
    if rank.kind == "slurm":
        return f"slurm {rank.job}.{os.environ['SLURM_STEP_ID']}"
    if rank.kind == "torchrun" and rank.nodes > 1:
        where = [os.environ.get(f"MASTER_{name}", "") for name in ("ADDR", "PORT")]
        return f"torchrun {os.environ['TORCHELASTIC_RUN_ID']} {':'.join(where)}"
    if rank.kind == "torchrun":  # which has started all of them; its port may be any other's too
        return f"torchrun {platform.node()} {os.getppid()}"
    return f"process {platform.node()} {os.getpid()}"


def device_of(config: EvaluateConfig) -> torch.device:
    """Choose the device of this rank."""
    return chosen_device(config.accelerator, "accelerator", launch().local_rank)


def autocast(config: EvaluateConfig) -> AbstractContextManager[Any]:
    """Compute in the config's precision inside the context."""
    if config.precision == "fp32":
        return nullcontext()
    return torch.autocast(device_of(config).type, torch.bfloat16)


def device_name(config: EvaluateConfig) -> str:
    """Name the device, for the result."""
    device = device_of(config)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def stop_on_request(
    requests: StopRequests, rank: Launch, journal: ResultJournal[Any], done: int, images: int
) -> None:
    """Stop a rank on request, and requeue its SLURM job if the request says so.

    Raises:
        SavedAndStopped: The same command continues.
        RuntimeError: SLURM refused to requeue the job.
    """
    request, job = requests.strongest, rank.job
    message = f"{done} of {counted(images, 'photo')} are done; stopped, since {request.reason()}"
    if request is Request.SIGINT:
        message += "; the same command continues"
    if job is None or not request.requeues():
        raise SavedAndStopped(message, request.exit_code())
    with journal.merging():  # one rank requeues for all: the request ends this start of the job
        mark = f"requeued {job} {rank.restarts}"
        why_not = "" if journal.mark() == mark else requeue(job)
        if why_not:
            raise RuntimeError(f"{message}, but job {job} could not be requeued: {why_not}")
        journal.set_mark(mark)
    raise SavedAndStopped(f"{message}; job {job} is requeued")
