"""One's own COCO-format set, packed into a run's folder before the run begins."""

from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from efficientsam_pl.config.diff import first_difference
from efficientsam_pl.data.config import CocoConfig, DataConfig
from efficientsam_pl.data.packing.custom_coco import HELDOUT, TRAIN, CustomCoco
from efficientsam_pl.data.packing.report import pack_source
from efficientsam_pl.data.packing.runner import ArrayShare, noted
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import exists, list_files

_SUMMARY = "pack-summary.json"


def packed_coco(config: DataConfig, run_dir: Path) -> DataConfig:
    """The config with the shards of `config.coco` in place of it; as it is where that names none.

    The first process that comes packs them into `RUN/shards`, others of the run wait for it. What
    is there already is used again, and what a killed process left unfinished is finished.

    Raises:
        UserError: A set that cannot be used, or shards of another one in the folder.
    """
    if config.coco.annotations is None:
        return config
    source, out = CustomCoco(config.coco), run_dir / "shards"
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(run_dir / ".shards.lock"):
        if not _is_packed(out, source):
            print(f"Packing {config.coco.annotations} into {out}")
            pack_source(source, str(out), ArrayShare(), config.workers)
    patterns = {side: f"{out}/{side}-*.tar" for side in (TRAIN, HELDOUT)}
    for side, pattern in patterns.items():
        if not list_files(pattern):
            raise UserError(
                f"{config.coco.annotations}: none of the {side} photos could be used; "
                f"{out / _SUMMARY} says why"
            )
    return replace(config, train=patterns[TRAIN], heldout=patterns[HELDOUT], coco=CocoConfig())


def _is_packed(out: Path, source: CustomCoco) -> bool:
    """Whether all of this source lies in the folder; the photos themselves are not compared."""
    before = noted(str(out))
    if before is None:
        return False
    differs = first_difference(before, source.described())
    if differs:
        raise UserError(
            f"{out} holds the photos of another set: {differs}; name another run.dir, or delete "
            "the folder"
        )
    return exists(str(out / _SUMMARY))
