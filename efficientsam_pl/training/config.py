"""Configs of every training stage: the run's folder, length, hardware, and their checks.

Imports no torch.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from efficientsam_pl.cluster.launch import Launch
from efficientsam_pl.config.command_help import CommandHelp
from efficientsam_pl.config.fields import free, logged, on_resume, path
from efficientsam_pl.config.load import ConfigError
from efficientsam_pl.config.unused import refuse_unused
from efficientsam_pl.data.config import DataConfig
from efficientsam_pl.errors import UserError
from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.plural import counted

_STORE_PATIENCE_S = 300.0
TRAINING_KEYS = (  # of every stage, listed in --help
    "trainer.max_steps",
    "trainer.global_batch",
    "trainer.micro_batch",
    "trainer.accelerator",
    "trainer.precision",
    "optim.peak_lr",
    "run.seed",
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run's folder and its seed."""

    # everything that the run writes goes there; also at s3:// and the like: see scratch
    dir: str = path("runs/unnamed", written="folder", resume="free")
    seed: int = 0  # of the order of samples, of masks and prompts, of fresh weights
    # auto: from the folder's newest checkpoint, if any; none: from the start; or the path of a run
    # or checkpoint. A job that its scheduler has restarted resumes from its own newest
    resume: str = path("auto", resume="free")
    # whether a run may resume with another recipe than the one it began with
    changed: Literal["refuse", "accept"] = free("refuse")
    # where a run whose dir is remote is kept before it is uploaded; None: the system's temp folder
    scratch: str | None = path(None, written="folder", resume="free")
    trace: bool = free(False)  # writes consumed.jsonl: step, rank, sample keys, loss

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

    max_steps: int = logged(1000)  # optimizer steps
    global_batch: int = 8  # photos a step, over all ranks
    micro_batch: int = free(8)  # photos that go through a rank at once: memory, not results
    accelerator: Literal["auto", "cpu", "gpu"] = free("auto")  # auto: a GPU where there is one
    devices: int | None = free(None)  # a node; None: as many as SLURM or torchrun started, else 1
    nodes: int | None = free(None)  # None: as many as were started, else 1
    # auto: ddp where there are several ranks. fsdp: FSDP2, parameters and optimizer in shards
    strategy: Literal["auto", "ddp", "fsdp"] = free("auto")
    precision: Literal["fp32", "bf16"] = free("fp32")  # of the computation; parameters stay float32
    # blocks: every block and what follows them; regions: encoder, decoder and loss as a whole each,
    # where nothing is sharded; step: the same, launched as a CUDA graph. Teachers: every block
    compile: Literal["none", "blocks", "regions", "step"] = free("none")
    # own GPU kernels or torch's operations. auto: in bf16 triton, if installed, on Hopper and later
    # data centre GPUs, whose shared memory the kernels need; else plain
    kernels: Literal["auto", "plain", "triton"] = free("auto")
    # recomputed: in the backward pass, block by block, which spares their memory
    activations: Literal["kept", "recomputed"] = free("kept")
    ema_decay: float | None = None  # a step; None: no averaged weights
    visualized_images: int = free(4)  # held-out images that are drawn; 0: none
    picture_every_steps: int = free(1000)  # pretraining; finetuning draws at every validation
    validate_every_steps: int = free(1000)
    checkpoint_every_steps: int = free(1000)
    # validates and saves about so many times an epoch, in whole steps, whatever the two above say
    subepochs: int | None = free(None)
    checkpoints_kept: int = free(3)  # the newest ones
    checkpoint_forever_every_steps: int | None = free(None)  # these stay; None: none does
    # background: training goes on while a copy of the state is written
    checkpoint_writing: Literal["blocking", "background"] = free("blocking")
    # The checkpoint with the best value of this logged metric is kept too and named in `best`:
    # the lowest of a loss, the highest of anything else. None: none is
    best_metric: str | None = free(None)
    logger: Literal["tensorboard", "wandb"] = free("tensorboard")  # wandb: the extra of that name

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name == "visualized_images" else 1
            if isinstance(value, int) and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie in (0, 1)")
        if self.compile == "step" and self.strategy == "fsdp":
            raise ValueError(
                "compile=step cannot capture the gathers of strategy=fsdp; choose compile=regions, "
                "or strategy=ddp"
            )
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
        for key, given, there in (
            ("nodes", self.nodes, launch.nodes),
            ("devices", self.devices, launch.ranks_per_node),
        ):
            if given not in (None, there):
                started = counted(there, "node" if key == "nodes" else "rank")
                started += "" if key == "nodes" else " a node"
                raise UserError(
                    f"trainer.{key}={given}, but {launch.kind} has started {started}; leave "
                    f"trainer.{key} out, or ask for {given}"
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
    """Limits that end a run early, in seconds."""

    save_before_limit_s: int = 180  # a SLURM job this near to its time limit saves and is requeued
    collective_timeout_s: int = 600  # a rank that waits for others longer fails
    hang_s: int = 1800  # no step for so long: all stacks are written and the run fails

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """Sections of every training stage; a stage's own config adds others and may change defaults.

    A check that needs no file is made when the config is built, and raises ValueError with the
    key. `check_inputs` is called once more before a command runs.
    """

    HELP: ClassVar[CommandHelp]

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    interruption: InterruptionConfig = field(
        default_factory=InterruptionConfig, metadata=on_resume("free")
    )

    def __post_init__(self) -> None:
        if not self.optim.warmup_steps < self.trainer.max_steps:
            raise ValueError(
                f"optim.warmup_steps={self.optim.warmup_steps} must be below "
                f"trainer.max_steps={self.trainer.max_steps}"
            )
        for name in ("collective_timeout_s", "hang_s"):
            limit_s = getattr(self.interruption, name)
            if self.store_patience_s() >= limit_s:
                raise ValueError(
                    f"data.store_patience_s={self.store_patience_s():g} must be below "
                    f"interruption.{name}={limit_s}, which ends a run that waits"
                )
        _check_best_metric(self.trainer.best_metric, self.metrics())
        if self.data.cache_dir is None:
            refuse_unused(self, "without data.cache_dir=", "data.cache_gib")
        coco = self.data.coco
        if coco.annotations is None:
            keys = ("data.coco.heldout_fraction", "data.coco.crowds")
            refuse_unused(self, "without data.coco.annotations=", *keys)
        elif coco.heldout_annotations is not None:
            reason = f"beside data.coco.heldout_annotations={coco.heldout_annotations}"
            refuse_unused(self, reason, "data.coco.heldout_fraction")

    def store_patience_s(self) -> float:
        """Seconds for which requests to a failing store are repeated."""
        if self.data.store_patience_s is not None:
            return self.data.store_patience_s
        shorter_s = min(self.interruption.collective_timeout_s, self.interruption.hang_s)
        return min(_STORE_PATIENCE_S, shorter_s / 2)

    def metrics(self) -> tuple[str, ...]:
        """Names of the logged metrics that can choose the best checkpoint."""
        return ("heldout/loss", "train/loss")

    def needed(self) -> dict[str, str]:
        """Values of the keys that have no default."""
        return {"data.train": self.data.train or "".join(s.shards for s in self.data.mixture)}

    def files(self) -> dict[str, str | None]:
        """Files that are read, by key."""
        return {}

    def check_inputs(self) -> None:
        """Check what depends on other files or on keys that later config files may add.

        Raises:
            ConfigError: Names the key.
        """
        if self.trainer.best_metric is None or self.data.validates():
            return
        try:
            refuse_unused(self, "without data.heldout=", "trainer.best_metric")
        except ValueError as error:
            raise ConfigError(str(error)) from error


def _check_best_metric(name: str | None, logged: Sequence[str]) -> None:
    """Raise ValueError with the nearest name and all names, unless validation logs the metric."""
    if name is None or name in logged:
        return
    near = difflib.get_close_matches(name, logged, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"trainer.best_metric={name} is not logged; did you mean {near}? There are "
        f"{', '.join(logged)}"
    )
