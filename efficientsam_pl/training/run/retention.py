"""A run's checkpoints: which is the newest, which the best, which may go."""

import shutil
from pathlib import Path

from efficientsam_pl.checkpoints.layout import (
    MANIFEST,
    manifest_of,
    point,
    pointed_to,
    step_folder,
    whole_checkpoints,
)
from efficientsam_pl.cluster.launch import note_progress
from efficientsam_pl.training.config import TrainerConfig
from efficientsam_pl.training.run.folder import RunFolder


class CheckpointRetention:
    """Rank 0's view of `checkpoints/`, `latest` and `best`; and of their mirror.

    Kept are the newest few, the best by a metric, and every n-th step for good.
    """

    def __init__(self, folder: RunFolder, config: TrainerConfig) -> None:
        self._folder, self._config = folder, config
        self._run, self._mirror = folder.local, folder.mirror

    def place(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return step_folder(self._run / "checkpoints", step)

    def written(self, unfinished: Path, files: list[Path]) -> None:
        """Files of a checkpoint that is not whole yet lie on this rank's disk."""
        if self._mirror is not None:
            name = unfinished.name.removeprefix(".").removesuffix(".part")
            self._mirror.put(files, root=unfinished, into=f"checkpoints/{name}")

    def placed(self, folder: Path) -> None:
        """A checkpoint is whole and has its name: it is the newest now."""
        latest = self._run / "latest"
        if self._mirror is not None:
            self._mirror.put_last(folder / MANIFEST)
        point(latest, folder)
        if self._mirror is not None:
            self._mirror.put_last(latest)
        self._folder.send_records()
        note_progress(manifest_of(folder).step)
        self._remove_old()

    def keep_best(self, folder: Path) -> None:
        """A whole checkpoint is the best so far, and stays until there is a better one."""
        point(self._run / "best", folder)
        if self._mirror is not None:
            self._mirror.put_last(self._run / "best")
        self._remove_old()

    def _remove_old(self) -> None:
        whole = whole_checkpoints(self._run / "checkpoints")
        best = pointed_to(self._run / "best")
        forever = self._config.checkpoint_forever_every_steps
        for folder in whole[self._config.checkpoints_kept :]:
            if folder == best or (forever and manifest_of(folder).step % forever == 0):
                continue
            if self._mirror is not None:
                self._mirror.remove(folder)
            (folder / MANIFEST).unlink()  # first: what is half removed is no checkpoint
            shutil.rmtree(folder)
