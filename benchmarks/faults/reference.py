"""Runs that nothing disturbs, made once for each setting that decides the numbers."""

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
# What decides the numbers of a run: another content asks for another reference
_DECIDING = ("data", "draws.py", "losses", "models", "optim", "prompts", "structures.py", "tasks")


@dataclass(frozen=True)
class Reference:
    """A finished run, and how long it took."""

    run: Path
    pace: Pace


def reference_run(toy: Toy, setting: Setting, folder: Path) -> Reference:
    """The undisturbed run of a setting, made where `folder` has none of this code's.

    Raises:
        Missed: Its job has failed, or was requeued.
        Hung: Or has not ended.
    """
    setting = setting.reference()
    place = folder / _fingerprint(toy) / setting.name().replace(" ", "-")
    told = place / "pace.json"
    if told.is_file():
        return Reference(place / "run", Pace(**json.loads(told.read_text())))
    shutil.rmtree(place, ignore_errors=True)
    began = time.monotonic()
    site = Site(toy, setting, place, random.Random(0), began + _DEADLINE_S, Pace(0, 0))
    job = site.submit()
    site.reach(job, 0)
    first = time.monotonic() - began
    site.finish(job)
    if job.restarts():
        raise Missed(f"job {job.id} is to be a reference, but was requeued")
    pace = Pace(round(first, 1), round(time.monotonic() - began, 1))
    told.write_text(json.dumps(asdict(pace)))
    return Reference(place / "run", pace)


def _fingerprint(toy: Toy) -> str:
    package = ROOT / "efficientsam_pl"
    parts = [package / name for name in _DECIDING]
    files = [file for part in parts for file in (part.rglob("*.py") if part.is_dir() else [part])]
    digest = hashlib.sha256()
    for file in sorted([*files, *toy.folder.glob("*.yaml")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
