"""Kinds of faults: each starts a run as jobs, injects the fault, and waits for the end."""

import math
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.faults.slurm_jobs import Job, kill, kill_node, revive_node
from benchmarks.faults.toy_runs import EVERY, STEPS
from benchmarks.faults.trial_site import Hung, Missed, Site, small_disk
from efficientsam_pl.checkpoints.layout import MANIFEST, read_pointer

Fault = Callable[[Site], str]  # returns what happened when

# Largest difference of a loss or a value of the state if ranks or strategy change during a run.
# Float32 sums have another order then, 1e-7 of a gradient; Adam divides by its magnitude,
# so a weight with a tiny gradient can move by part of the learning rate (4e-4 at most) per step.
TOLERANCE = 1e-3

_DISK_MIB = 64  # holds a few checkpoints
_FULL_STEPS = 2 * EVERY + 1  # two checkpoints are due meanwhile


def undisturbed(site: Site) -> str:
    """Inject nothing: two equal runs must agree."""
    site.finish(site.submit())
    return "nothing"


def signalled(site: Site) -> str:
    """Send SIGUSR1 to all processes, as a preemption does; sometimes again after the requeue."""
    job = site.submit()
    came: list[int] = []
    for _ in range(site.draw.choice([1, 1, 2])):
        came.append(site.strike(job, earliest=came[-1] + 2 if came else 1, latest=STEPS - 10))
        job.signal("USR1")
        _await_restart(site, job, len(came))
    site.finish(job)
    return f"USR1 after step {' and '.join(map(str, came))}"


def out_of_time(site: Site) -> str:
    """Let a time limit of a minute, or more on a slow machine, approach during the run.

    The time is chosen before the start. If the machine is slower than before, a job that would stop
    at its first step is refused, and if it is faster, the run ends without a fault: then it is
    retried.
    """
    pace = site.pace
    minutes = math.ceil(pace.seconds / 45)
    near_s = pace.first_step_s + site.draw.uniform(0.2, 0.7) * pace.training_s()
    while True:
        left = min(max(60 * minutes - round(near_s), 5), 60 * minutes - 5)
        # the template's SIGUSR1, four minutes before the limit, would arrive at the start
        given = f"interruption.save_before_limit_s={left}"
        job = site.submit(None, given, minutes=minutes, signal="CONT@1")
        refused = False
        try:
            site.finish(job)
        except Missed:
            refused = "before it has trained" in job.log()
            if not refused:
                raise
        if job.restarts():
            if refused:  # in a later start, which was slower than the first
                site.finish(site.submit())
            return f"{left} s before the limit"
        if refused:
            near_s *= 1.6
        else:
            shutil.rmtree(site.run)
            near_s *= 0.7


def requeued(site: Site) -> str:
    """Requeue the job by `scontrol requeue`, as an operator does."""
    job = site.submit()
    step = site.strike(job)
    job.requeue()
    site.finish(job)
    _restarted(job)
    return f"after step {step}"


def killed_rank(site: Site) -> str:
    """Kill a rank by SIGKILL, as the kernel does when memory is exhausted."""
    job = site.submit()
    step, rank = site.strike(job), site.draw.randrange(2)
    job.kill_rank(rank)
    site.finish(job)
    _restarted(job)
    return f"rank {rank} after step {step}"


def killed_while_saving(site: Site) -> str:
    """Kill a rank while a checkpoint is being written."""
    job = site.submit()
    step, rank = site.strike(job, latest=STEPS - 12), site.draw.randrange(2)
    victim = job.rank_pids()[rank]  # looked up now, since that takes longer than a save
    met = site.saving(job)
    kill(victim)
    site.finish(job)
    _restarted(job)
    return f"rank {rank} after step {step}, {'during' if met else 'between'} checkpoints"


def killed_node(site: Site) -> str:
    """Kill a node's daemon and all its processes; the node returns after a while."""
    job = site.submit()
    step, node = site.strike(job), site.draw.choice(["n1", "n2"])
    kill_node(node)
    away = site.draw.uniform(0, 15)
    time.sleep(away)
    revive_node(node)
    site.finish(job)
    _restarted(job)
    return f"{node} after step {step} for {away:.0f} s"


def corrupt_checkpoint(site: Site) -> str:
    """Corrupt the latest checkpoint before the run resumes."""
    first = site.submit()
    step = site.strike(first, earliest=2 * EVERY + 1)
    how = site.stop(first)
    latest = read_pointer(site.run / "latest")
    if latest is None:
        raise Missed("the run has saved nothing")
    corruption = corrupt_file(latest, site.draw)
    site.finish(site.submit())
    site.require_in_logs("IS CORRUPT")
    return f"{how} after step {step}; {corruption}"


def full_disk(site: Site) -> str:
    """Fill the disk for a while, so that no checkpoint fits; sometimes also kill a rank."""
    dies = site.draw.random() < 0.5
    job = site.submit()
    step = site.strike(job, earliest=EVERY, latest=STEPS - 3 * EVERY)
    ballast = site.run / "checkpoints" / "ballast"
    fill(ballast)
    site.reach(job, step + _FULL_STEPS)
    if dies:
        job.kill_rank(site.draw.randrange(2))
        time.sleep(site.draw.uniform(0, 5))
    ballast.unlink()
    site.finish(job)
    site.require_in_logs("COULD NOT BE WRITTEN")
    return f"full from step {step} on for {_FULL_STEPS}{', then a rank was killed' * dies}"


def other_nodes(site: Site) -> str:
    """Run on two nodes, then one, then two again."""
    both, single = site.setting, replace(site.setting, nodes=1)
    first = site.submit(both)
    step = site.strike(first, latest=STEPS // 3)
    events = [f"2 nodes, {site.stop(first)} after step {step}"]
    second = site.submit(single)
    step = site.strike(second, earliest=step + 3, latest=2 * STEPS // 3)
    events.append(f"1 node, {site.stop(second)} after step {step}")
    site.finish(site.submit(both))
    return ", ".join([*events, "2 nodes"])


def other_strategy(site: Site) -> str:
    """Switch from DDP to FSDP2, or back."""
    before = site.setting
    after = replace(before, strategy="fsdp" if before.strategy == "ddp" else "ddp")
    first = site.submit(before)
    step = site.strike(first)
    how = site.stop(first)
    site.finish(site.submit(after))
    return f"{before.strategy}, {how} after step {step}, {after.strategy}"


def other_workers(site: Site) -> str:
    """Switch from no data workers to two per rank, or back."""
    first = site.submit()
    step = site.strike(first)
    how = site.stop(first)
    after = replace(site.setting, workers=0 if site.setting.workers else 2)
    site.finish(site.submit(after))
    return f"{site.setting.workers} workers, {how} after step {step}, {after.workers} workers"


KINDS: dict[str, Fault] = {
    "undisturbed": undisturbed,
    "SIGUSR1": signalled,
    "time limit": out_of_time,
    "scontrol requeue": requeued,
    "killed rank": killed_rank,
    "killed while saving": killed_while_saving,
    "killed node": killed_node,
    "damaged checkpoint": corrupt_checkpoint,
    "full disk": full_disk,
    "2 nodes, 1, 2": other_nodes,
    "DDP, FSDP2": other_strategy,
    "other workers": other_workers,
}
LOOSE = frozenset({"2 nodes, 1, 2", "DDP, FSDP2"})  # their sums are computed in another order


def run_fault(kind: str, site: Site) -> str:
    """Run a kind of trial to its end, and describe the fault.

    Raises:
        Hung: It did not finish by its deadline.
        Missed: A job has not ended as it should, or has not said what it should.
    """
    if kind == "full disk":
        with small_disk(site.run / "checkpoints", _DISK_MIB):
            return KINDS[kind](site)
    return KINDS[kind](site)


def corrupt_file(checkpoint: Path, draw: random.Random) -> str:
    """Corrupt one file of a checkpoint, and describe how."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    path = draw.choice(files)
    content = path.read_bytes()
    at = draw.randrange(len(content) - 1)  # without its last byte but one no JSON is whole
    # Nothing vouches for the manifest's own bits
    how = draw.choice(["cut", "emptied", "removed", *["flipped"] * (path.name != MANIFEST)])
    if how == "removed":
        path.unlink()
    else:
        flipped = content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]
        path.write_bytes({"cut": content[:at], "emptied": b"", "flipped": flipped}[how])
    return f"{checkpoint.name}/{path.relative_to(checkpoint)} {how}"


def fill(path: Path) -> None:
    """Fill the disk."""
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def _await_restart(site: Site, job: Job, count: int) -> None:
    """Wait until a job was requeued `count` times."""
    while job.restarts() < count:
        if time.monotonic() > site.until:
            raise Hung(f"job {job.id} is {job.state()}, requeued {job.restarts()} times")
        if job.state() == "COMPLETED":
            raise Missed(f"job {job.id} finished despite the signal")
        time.sleep(0.3)


def _restarted(job: Job) -> None:
    if job.restarts() == 0:
        raise Missed(f"job {job.id} was not interrupted: it finished in its first start")
