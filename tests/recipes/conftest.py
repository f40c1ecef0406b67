"""The tiny shards, configs and runs of both stages, for the tests of recipes, too."""

from tests.training.conftest import _one_thread, model_file, run, shards, stage, stage_files

__all__ = ["_one_thread", "model_file", "run", "shards", "stage", "stage_files"]
