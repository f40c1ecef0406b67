"""Where a run lives, how long it is and on what it runs; without torch."""

from dataclasses import dataclass, replace
from typing import Literal

from efficientsam_pl.cluster.launch import Launch
from efficientsam_pl.config.fields import path
from efficientsam_pl.errors import UserError
from efficientsam_pl.plural import counted


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run's folder and its seed."""

    # everything that the run writes goes there; also at s3:// and the like: see scratch
    dir: str = path("runs/unnamed", written="folder")
    seed: int = 0  # of the order of samples, of masks and prompts, of fresh weights
    # auto: from the folder's newest checkpoint, if any; none: anew; or the path of a run or of one
    # of its checkpoints. A job that its scheduler has restarted goes on from its own newest
    resume: str = path("auto")
    # whether a run goes on under a recipe that is not the one it began with
    changed: Literal["refuse", "accept"] = "refuse"
    # where a run whose dir is remote is kept before it is uploaded; None: the system's temp folder
    scratch: str | None = path(None, written="folder")
    trace: bool = False  # writes consumed.jsonl: step, rank, sample keys, loss

    def __post_init__(self) -> None:
        if not self.dir:
            raise ValueError("dir= must name a folder")
        if not self.resume:
            raise ValueError("resume= must be auto, none or a path")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must lie in [0, 2**63)")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Length, batch and hardware. The global batch is what the recipe says; the rest follows.

    `micro_batch` photos go through a rank at once; gradients are accumulated until
    `global_batch` photos have been seen over all ranks.
    """

    max_steps: int = 1000  # optimizer steps
    global_batch: int = 8  # photos a step, over all ranks
    micro_batch: int = 8  # photos that go through a rank at once: memory, not results
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"  # auto: a GPU where there is one
    devices: int | None = None  # a node; None: as many as SLURM or torchrun started, else 1
    nodes: int | None = None  # None: as many as were started, else 1
    # auto: ddp where there are several ranks. fsdp: FSDP2, parameters and optimizer in shards
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"  # of the computation; parameters stay float32
    compile: Literal["none", "blocks"] = "none"  # every block, teacher's and mask decoder too
    # recomputed: in the backward pass, block by block, which spares their memory
    activations: Literal["kept", "recomputed"] = "kept"
    ema_decay: float | None = None  # a step; None: no averaged weights
    visualized_images: int = 4  # held-out images that are drawn; 0: none
    picture_every_steps: int = 1000  # pretraining; finetuning draws at every validation
    validate_every_steps: int = 1000
    checkpoint_every_steps: int = 1000
    # validates and saves about so many times an epoch, in whole steps, whatever the two above say
    subepochs: int | None = None
    checkpoints_kept: int = 3  # the newest ones
    checkpoint_forever_every_steps: int | None = None  # these stay; None: none does
    # background: training goes on while a copy of the state is written
    checkpoint_writing: Literal["blocking", "background"] = "blocking"
    # The checkpoint with the best value of this logged metric is kept too and named in `best`:
    # the lowest of a loss, the highest of anything else. None: none is
    best_metric: str | None = None
    logger: Literal["tensorboard", "wandb"] = "tensorboard"  # wandb: the extra of that name

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name == "visualized_images" else 1
            if isinstance(value, int) and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie in (0, 1)")
        together = self.micro_batch * self.world_size()
        if self.global_batch % together:
            raise ValueError(
                f"global_batch={self.global_batch} must be a multiple of micro_batch="
                f"{self.micro_batch} times {self.world_size()} ranks"
            )

    def paced(self, samples: int) -> "TrainerConfig":
        """With the steps between validations that `subepochs` makes of an epoch's samples."""
        if self.subepochs is None:
            return self
        steps = max(1, round(samples / (self.subepochs * self.global_batch)))
        return replace(self, validate_every_steps=steps, checkpoint_every_steps=steps)

    def on(self, launch: Launch) -> "TrainerConfig":
        """With the ranks that were started, and micro-batches that make the global batch of them.

        Raises:
            UserError: The config names other numbers, or the ranks cannot share the global batch.
        """
        if launch.kind == "person":
            return replace(self, devices=self.devices or 1, nodes=self.nodes or 1)
        for key, asked, there in (
            ("nodes", self.nodes, launch.nodes),
            ("devices", self.devices, launch.ranks_per_node),
        ):
            if asked not in (None, there):
                started = counted(there, "node" if key == "nodes" else "rank")
                started += "" if key == "nodes" else " a node"
                raise UserError(
                    f"trainer.{key}={asked}, but {launch.kind} has started {started}; leave "
                    f"trainer.{key} out, or ask for {asked}"
                )
        world = launch.nodes * launch.ranks_per_node
        if self.global_batch % world:
            raise UserError(
                f"trainer.global_batch={self.global_batch} cannot be shared by {world} ranks "
                f"({counted(launch.nodes, 'node')} of {launch.ranks_per_node})"
            )
        share = self.global_batch // world
        micro_batch = next(n for n in range(min(self.micro_batch, share), 0, -1) if share % n == 0)
        return replace(
            self, nodes=launch.nodes, devices=launch.ranks_per_node, micro_batch=micro_batch
        )

    def world_size(self) -> int:
        """Ranks in all."""
        return (self.devices or 1) * (self.nodes or 1)

    def accumulate(self) -> int:
        """Micro-batches a rank adds up before a step."""
        return self.global_batch // (self.micro_batch * self.world_size())


@dataclass(frozen=True, kw_only=True)
class InterruptionConfig:
    """What ends a run early, and how soon it is noticed. Seconds."""

    save_before_limit_s: int = 180  # a SLURM job this near to its time limit saves and is requeued
    collective_timeout_s: int = 600  # a rank that waits for others longer fails
    hang_s: int = 1800  # no step for so long: all stacks are written and the run fails

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
