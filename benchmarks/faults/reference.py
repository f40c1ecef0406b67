"""Uninterrupted reference runs, one for each setting that affects the results."""

import hashlib
import json
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.faults.toy_runs import Setting, Toy
from benchmarks.faults.trial_site import ROOT, Missed, Pace, Site

_DEADLINE_S = 300.0
# Code that determines the results of a run; a change of it requires a new reference
_DECIDING = (
    "data",
    "keyed_random.py",
    "losses",
    "models",
    "optim",
    "prompts",
    "recipes",
    "structures.py",
    "training/module.py",
)


@dataclass(frozen=True)
class Reference:
    """A finished run and its duration."""

    run: Path
    pace: Pace


def reference_run(toy: Toy, setting: Setting, folder: Path) -> Reference:
    """Return the uninterrupted run of a setting, made if `folder` has none of this code.

    Raises:
        Missed: Its job failed or was requeued.
        Hung: Its job did not end.
    """
    setting = setting.reference()
    place = folder / _fingerprint(toy) / setting.name().replace(" ", "-")
    pace_file = place / "pace.json"
    if pace_file.is_file():
        return Reference(place / "run", Pace(**json.loads(pace_file.read_text())))
    shutil.rmtree(place, ignore_errors=True)
    began = time.monotonic()
    site = Site(toy, setting, place, random.Random(0), began + _DEADLINE_S, Pace(0, 0))
    job = site.submit()
    site.reach(job, 0)
    first = time.monotonic() - began
    site.finish(job)
    if job.restarts():
        raise Missed(f"job {job.id} is a reference run, but was requeued")
    pace = Pace(round(first, 1), round(time.monotonic() - began, 1))
    pace_file.write_text(json.dumps(asdict(pace)))
    return Reference(place / "run", pace)


def _fingerprint(toy: Toy) -> str:
    package = ROOT / "efficientsam_pl"
    parts = [package / name for name in _DECIDING]
    files = [file for part in parts for file in (part.rglob("*.py") if part.is_dir() else [part])]
    digest = hashlib.sha256()
    for file in sorted([*files, *toy.folder.glob("*.yaml")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
