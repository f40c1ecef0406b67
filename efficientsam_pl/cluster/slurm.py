"""What a running job asks of SLURM: when it will be ended, and to be started again."""

import logging
import os
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime

_log = logging.getLogger(__name__)
_ANSWER_S = 60  # the controller's own patience is 10 s a try


def end_of_job(job: str, environ: Mapping[str, str] = os.environ) -> float | None:
    """When the time limit ends a job, in seconds since 1970; None where there is no limit.

    It is also None where SLURM cannot be asked, as in a container without its commands; the log
    says so.
    """
    if environ.get("SLURM_JOB_END_TIME"):
        return float(environ["SLURM_JOB_END_TIME"])
    try:
        told = _scontrol("show", "job", "-o", job)
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("when job %s ends is not known, %s; only signals will stop it", job, error)
        return None
    found = re.search(r"\bEndTime=(\d\S*)", told)  # or EndTime=Unknown
    return None if found is None else datetime.fromisoformat(found[1]).timestamp()


def requeue(job: str) -> str:
    """Has a job started again later, by the same script; SLURM then ends this start of it.

    Returns:
        Why it will not be, or "" where it will.
    """
    try:
        _scontrol("requeue", job)
    except subprocess.CalledProcessError as error:
        # by a signal: SLURM has granted the request and ends the job, this call of ours with it
        return "" if error.returncode < 0 else (error.stderr.strip() or str(error))
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return ""


def _scontrol(*arguments: str) -> str:
    done = subprocess.run(
        ["scontrol", *arguments], capture_output=True, text=True, timeout=_ANSWER_S, check=True
    )
    return done.stdout
