"""Where a run lives, how long it is and on what it runs; without torch."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run's folder and its seed."""

    dir: str = "runs/unnamed"
    seed: int = 0
    resume: Literal["auto", "none"] = "auto"  # auto: from the folder's newest checkpoint, if any
    trace: bool = False  # writes consumed.jsonl: step, rank, sample keys, loss

    def __post_init__(self) -> None:
        if not self.dir:
            raise ValueError("dir= must name a folder")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must lie in [0, 2**63)")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Length, batch and hardware. The global batch is what the recipe says; the rest follows.

    `micro_batch` photos go through a rank at once; gradients are accumulated until
    `global_batch` photos have been seen over all ranks.
    """

    max_steps: int = 1000  # optimizer steps
    global_batch: int = 8
    micro_batch: int = 8
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1  # a node
    nodes: int = 1
    # auto: ddp where there are several ranks. fsdp: FSDP2, parameters and optimizer in shards
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"  # of the computation; parameters stay float32
    compile: Literal["none", "blocks"] = "none"  # every block, teacher's and mask decoder too
    # recomputed: in the backward pass, block by block, which spares their memory
    activations: Literal["kept", "recomputed"] = "kept"
    ema_decay: float | None = None  # a step; None: no averaged weights
    picture_every_steps: int = 1000
    validate_every_steps: int = 1000
    checkpoint_every_steps: int = 1000
    # validates and saves about so many times an epoch, in whole steps, whatever the two above say
    subepochs: int | None = None
    checkpoints_kept: int = 3  # the newest ones
    # The checkpoint with the best value of this logged metric is kept too and named in `best`:
    # the lowest of a loss, the highest of anything else. None: none is
    best_metric: str | None = None
    logger: Literal["tensorboard", "wandb"] = "tensorboard"  # wandb: the extra of that name

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
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

    def world_size(self) -> int:
        """Ranks in all."""
        return self.devices * self.nodes

    def accumulate(self) -> int:
        """Micro-batches a rank adds up before a step."""
        return self.global_batch // (self.micro_batch * self.world_size())
