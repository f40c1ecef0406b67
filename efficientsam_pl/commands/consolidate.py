"""`efficientsam consolidate`: convert a checkpoint to a weights file."""

from pathlib import Path

from efficientsam_pl.checkpoints.select import resolve_checkpoint
from efficientsam_pl.errors import UserError
from efficientsam_pl.export.consolidate import consolidate


def run(checkpoint: Path, out: Path, best: bool = False) -> Path:
    """Write the weights of a checkpoint, or of a run's latest or best checkpoint.

    Raises:
        UserError: `best` is set, but the folder is not a run with a best checkpoint.
    """
    if best and not (checkpoint / "best").is_file():
        raise UserError(
            f"--best: there is no {checkpoint / 'best'}, which names a run's best checkpoint"
        )
    checkpoint = resolve_checkpoint(checkpoint, "best" if best else "latest")
    consolidate(checkpoint, out)
    print(f"{checkpoint} -> {out} ({out.stat().st_size / 2**20:.1f} MiB)")
    return out
