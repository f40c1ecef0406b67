"""Query a job's end time from SLURM, and requeue it."""

import logging
import os
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime

_log = logging.getLogger(__name__)
_TIMEOUT_S = 60  # scontrol itself retries with a timeout of 10 s


def job_end_time(job: str, environ: Mapping[str, str] = os.environ) -> float | None:
    """Time at which the time limit ends a job, in seconds since 1970; None if there is no limit.

    Also None, with a warning, if SLURM cannot be queried, as in a container without its commands.
    """
    if environ.get("SLURM_JOB_END_TIME"):
        return float(environ["SLURM_JOB_END_TIME"])
    try:
        output = _scontrol("show", "job", "-o", job)
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("the end time of job %s is unknown, %s; only signals will stop it", job, error)
        return None
    match = re.search(r"\bEndTime=(\d\S*)", output)  # or EndTime=Unknown
    return None if match is None else datetime.fromisoformat(match[1]).timestamp()


def requeue(job: str) -> str:
    """Requeue a job, which also makes SLURM end its current start.

    Returns:
        Error message, or "" on success.
    """
    try:
        _scontrol("requeue", job)
    except subprocess.CalledProcessError as error:
        # killed by a signal: SLURM has accepted the request and is ending the job with this call
        return "" if error.returncode < 0 else (error.stderr.strip() or str(error))
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return ""


def _scontrol(*arguments: str) -> str:
    done = subprocess.run(
        ["scontrol", *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
    )
    return done.stdout
