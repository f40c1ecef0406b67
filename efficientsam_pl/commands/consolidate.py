"""`efficientsam consolidate`: a checkpoint to one file."""

from pathlib import Path

from efficientsam_pl.checkpoints.select import resolve_checkpoint
from efficientsam_pl.errors import UserError
from efficientsam_pl.export.consolidate import consolidate


def run(checkpoint: Path, out: Path, best: bool = False) -> Path:
    """Writes the weights; a run's folder stands for its newest checkpoint, or for its best.

    Raises:
        UserError: The best is asked for of what is no run with one.
    """
    if best and not (checkpoint / "best").is_file():
        raise UserError(
            f"--best: there is no {checkpoint / 'best'}, which names a run's best checkpoint"
        )
    checkpoint = resolve_checkpoint(checkpoint, "best" if best else "latest")
    consolidate(checkpoint, out)
    print(f"{checkpoint} -> {out} ({out.stat().st_size / 2**20:.1f} MiB)")
    return out
