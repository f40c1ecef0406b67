"""Pack a custom COCO-format set into the run's folder before the run begins."""

from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from efficientsam_pl.config.diff import first_difference
from efficientsam_pl.data.config import CocoConfig, DataConfig
from efficientsam_pl.data.packing.changes import changed_message, compare_folder
from efficientsam_pl.data.packing.custom_coco import HELDOUT, TRAIN, CustomCoco
from efficientsam_pl.data.packing.report import pack_source
from efficientsam_pl.data.packing.runner import ArrayShare, read_pack_note
from efficientsam_pl.data.packing.split import copies_message
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import exists, list_files

_SUMMARY = "pack-summary.json"


def packed_coco(config: DataConfig, run_dir: Path) -> DataConfig:
    """Replace `config.coco` by its packed shards; return the config unchanged where it is unset.

    The first process packs them into `RUN/shards`, others of the run wait for it. Existing shards
    are reused, and a killed process's packing is completed.

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
            for line in source.findings():
                print(line)
            if source.copies:
                print(copies_message(source.copies))
            pack_source(source, str(out), ArrayShare(), config.workers)
    patterns = {side: f"{out}/{side}-*.tar" for side in (TRAIN, HELDOUT)}
    for side, pattern in patterns.items():
        if not list_files(pattern):
            raise UserError(
                f"{config.coco.annotations}: none of the {side} images could be used; "
                f"{out / _SUMMARY} says why"
            )
    return replace(config, train=patterns[TRAIN], heldout=patterns[HELDOUT], coco=CocoConfig())


def _is_packed(out: Path, source: CustomCoco) -> bool:
    """Return whether the folder holds all of this source, as its images are now.

    Raises:
        UserError: It holds another set, or images changed after being packed.
    """
    before = read_pack_note(str(out))
    if before is None:
        return False
    differs = first_difference(before, source.described())
    if differs:
        raise UserError(
            f"{out} holds the images of another set: {differs}; name another run.dir, or delete "
            "the folder"
        )
    changed, mended = compare_folder(str(out))
    if changed:
        raise UserError(
            f"{changed_message(changed, str(out))}; delete {out} to pack the images as they are "
            "now, or name another run.dir"
        )
    whole = all(list_files(f"{out}/{side}-*.tar") for side in (TRAIN, HELDOUT))
    return whole and not mended and exists(str(out / _SUMMARY))
