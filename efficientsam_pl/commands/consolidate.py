"""`efficientsam consolidate`: a checkpoint to one safetensors file."""

from pathlib import Path

from efficientsam_pl.export.consolidate import consolidate


def run(checkpoint: Path, out: Path) -> Path:
    """Writes the weights; a run's folder stands for its newest checkpoint."""
    latest = checkpoint / "latest"
    if latest.is_file():
        checkpoint = checkpoint / latest.read_text().strip()
    consolidate(checkpoint, out)
    print(f"{checkpoint} -> {out} ({out.stat().st_size / 2**20:.1f} MiB)")
    return out
