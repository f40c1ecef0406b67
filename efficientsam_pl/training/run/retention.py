"""Checkpoint retention: which checkpoint is the latest, which the best, which are removed."""

import shutil
from pathlib import Path

from efficientsam_pl.checkpoints.layout import (
    MANIFEST,
    complete_checkpoints,
    read_manifest,
    read_pointer,
    step_folder,
    write_pointer,
)
from efficientsam_pl.cluster.launch import note_progress
from efficientsam_pl.training.config import TrainerConfig
from efficientsam_pl.training.run.folder import RunFolder


class CheckpointRetention:
    """Maintain `checkpoints/`, `latest` and `best`, and their remote copies, on rank 0.

    Keeps the latest few checkpoints, the best by a metric, and every n-th step permanently.
    """

    def __init__(self, folder: RunFolder, config: TrainerConfig) -> None:
        self._folder, self._config = folder, config
        self._run, self._mirror = folder.local, folder.mirror

    def checkpoint_path(self, step: int) -> Path:
        """Path of the checkpoint of a step."""
        return step_folder(self._run / "checkpoints", step)

    def upload_files(self, partial: Path, files: list[Path]) -> None:
        """Upload this rank's files of a checkpoint that is not complete yet."""
        if self._mirror is not None:
            name = partial.name.removeprefix(".").removesuffix(".part")
            self._mirror.put(files, root=partial, into=f"checkpoints/{name}")

    def set_latest(self, folder: Path) -> None:
        """Make a complete checkpoint the latest, and remove what is no longer kept."""
        latest = self._run / "latest"
        if self._mirror is not None:
            self._mirror.put_last(folder / MANIFEST)
        write_pointer(latest, folder)
        if self._mirror is not None:
            self._mirror.put_last(latest)
        self._folder.send_records()
        note_progress(read_manifest(folder).step)
        self._remove_old()

    def set_best(self, folder: Path) -> None:
        """Make a complete checkpoint the best; it is kept until there is a better one."""
        write_pointer(self._run / "best", folder)
        if self._mirror is not None:
            self._mirror.put_last(self._run / "best")
        self._remove_old()

    def _remove_old(self) -> None:
        complete = complete_checkpoints(self._run / "checkpoints")
        best = read_pointer(self._run / "best")
        permanent_every = self._config.checkpoint_forever_every_steps
        for folder in complete[self._config.checkpoints_kept :]:
            if folder == best or (
                permanent_every and read_manifest(folder).step % permanent_every == 0
            ):
                continue
            if self._mirror is not None:
                self._mirror.remove(folder)
            (folder / MANIFEST).unlink()  # first, so that a half-removed folder is no checkpoint
            shutil.rmtree(folder)
