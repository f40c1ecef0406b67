"""The kinds of faults: each starts a run as jobs, strikes, and sees the run to its end."""

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
from efficientsam_pl.checkpoints.layout import MANIFEST, pointed_to

Fault = Callable[[Site], str]  # what came when

# Of a loss or a number of the state, where ranks or strategy change amid a run. Float32 sums come
# in another order then, 1e-7 of a gradient; Adam divides by the gradient's own size, so a weight
# whose gradient is next to nothing moves by a share of the learning rate (4e-4 at most) a step.
TOLERANCE = 1e-3

_DISK_MIB, _FULL_STEPS = 64, 2 * EVERY + 1  # a disk of some checkpoints; full for two that are due


def undisturbed(site: Site) -> str:
    """Nothing happens: two runs of a kind are the same."""
    site.finish(site.submit())
    return "nothing"


def signalled(site: Site) -> str:
    """SIGUSR1 to all processes, as a preemption sends it; sometimes again after the requeue."""
    job = site.submit()
    came: list[int] = []
    for _ in range(site.draw.choice([1, 1, 2])):
        came.append(site.strike(job, earliest=came[-1] + 2 if came else 1, latest=STEPS - 10))
        job.signal("USR1")
        _await_restart(site, job, len(came))
    site.finish(job)
    return f"USR1 after step {' and '.join(map(str, came))}"


def out_of_time(site: Site) -> str:
    """A time limit of a minute, more where this machine is slow, that draws near amid the run.

    When that is, is said before the start. Where this machine is slower by now than it was, a job
    is refused that would stop at its first step, and where it is faster, a run ends undisturbed:
    then it is tried again.
    """
    pace = site.pace
    minutes = math.ceil(pace.seconds / 45)
    near_s = pace.first_step_s + site.draw.uniform(0.2, 0.7) * pace.training_s()
    while True:
        left = min(max(60 * minutes - round(near_s), 5), 60 * minutes - 5)
        # the template's SIGUSR1, four minutes before the limit, would come at the start
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
    """`scontrol requeue`, as an operator does it."""
    job = site.submit()
    step = site.strike(job)
    job.requeue()
    site.finish(job)
    _restarted(job)
    return f"after step {step}"


def killed_rank(site: Site) -> str:
    """kill -9 of a rank, as the kernel does that is out of memory."""
    job = site.submit()
    step, rank = site.strike(job), site.draw.randrange(2)
    job.kill_rank(rank)
    site.finish(job)
    _restarted(job)
    return f"rank {rank} after step {step}"


def killed_while_saving(site: Site) -> str:
    """The same while a checkpoint is being written."""
    job = site.submit()
    step, rank = site.strike(job, latest=STEPS - 12), site.draw.randrange(2)
    victim = job.rank_pids()[rank]  # now, as looking for it takes longer than a save
    met = site.saving(job)
    kill(victim)
    site.finish(job)
    _restarted(job)
    return f"rank {rank} after step {step}, {'amid' if met else 'between'} checkpoints"


def killed_node(site: Site) -> str:
    """A node's daemon and all it runs are gone; the node comes back after a while."""
    job = site.submit()
    step, node = site.strike(job), site.draw.choice(["n1", "n2"])
    kill_node(node)
    away = site.draw.uniform(0, 15)
    time.sleep(away)
    revive_node(node)
    site.finish(job)
    _restarted(job)
    return f"{node} after step {step} for {away:.0f} s"


def damaged_checkpoint(site: Site) -> str:
    """The newest checkpoint is not as it was written when the run goes on."""
    first = site.submit()
    step = site.strike(first, earliest=2 * EVERY + 1)
    how = site.stop(first)
    newest = pointed_to(site.run / "latest")
    if newest is None:
        raise Missed("the run has saved nothing")
    damage = damage_file(newest, site.draw)
    site.finish(site.submit())
    site.told("IS DAMAGED")
    return f"{how} after step {step}; {damage}"


def full_disk(site: Site) -> str:
    """No room for a checkpoint for a while; sometimes a rank dies meanwhile."""
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
    site.told("COULD NOT BE WRITTEN")
    return f"full from step {step} on for {_FULL_STEPS}{', then a rank was killed' * dies}"


def other_nodes(site: Site) -> str:
    """Two nodes, then one, then two again."""
    both, one = site.setting, replace(site.setting, nodes=1)
    first = site.submit(both)
    step = site.strike(first, latest=STEPS // 3)
    told = [f"2 nodes, {site.stop(first)} after step {step}"]
    second = site.submit(one)
    step = site.strike(second, earliest=step + 3, latest=2 * STEPS // 3)
    told.append(f"1 node, {site.stop(second)} after step {step}")
    site.finish(site.submit(both))
    return ", ".join([*told, "2 nodes"])


def other_strategy(site: Site) -> str:
    """DDP, then FSDP2; or the other way round."""
    before = site.setting
    after = replace(before, strategy="fsdp" if before.strategy == "ddp" else "ddp")
    first = site.submit(before)
    step = site.strike(first)
    how = site.stop(first)
    site.finish(site.submit(after))
    return f"{before.strategy}, {how} after step {step}, {after.strategy}"


def other_workers(site: Site) -> str:
    """No data workers, then two a rank; or the other way round."""
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
    "damaged checkpoint": damaged_checkpoint,
    "full disk": full_disk,
    "2 nodes, 1, 2": other_nodes,
    "DDP, FSDP2": other_strategy,
    "other workers": other_workers,
}
LOOSE = frozenset({"2 nodes, 1, 2", "DDP, FSDP2"})  # their sums come in another order


def run_fault(kind: str, site: Site) -> str:
    """Runs a kind of trial to its end, and says what was done.

    Raises:
        Hung: It is not over at its deadline.
        Missed: A job has not ended as it should, or has not said what it should.
    """
    if kind == "full disk":
        with small_disk(site.run / "checkpoints", _DISK_MIB):
            return KINDS[kind](site)
    return KINDS[kind](site)


def damage_file(checkpoint: Path, draw: random.Random) -> str:
    """Damages one file of a checkpoint, and says how."""
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
    """Takes all the room that is left on a disk."""
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def _await_restart(site: Site, job: Job, count: int) -> None:
    """Waits until a job was requeued so often."""
    while job.restarts() < count:
        if time.monotonic() > site.until:
            raise Hung(f"job {job.id} is {job.state()}, requeued {job.restarts()} times")
        if job.state() == "COMPLETED":
            raise Missed(f"job {job.id} went on to its end in spite of the signal")
        time.sleep(0.3)


def _restarted(job: Job) -> None:
    if job.restarts() == 0:
        raise Missed(f"job {job.id} was not hit: it has ended in its first start")
