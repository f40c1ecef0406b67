"""Packing, embedding and evaluation as jobs make what one process makes."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.faults.reference import Reference
from benchmarks.faults.slurm_jobs import Job, submit
from benchmarks.faults.toy_runs import Setting, Toy
from benchmarks.faults.trial_site import environment

PHOTOS, TIME_S = 7, 180.0


def here(*arguments: str) -> None:
    """In one process, without SLURM."""
    command = [sys.executable, "-m", "efficientsam_pl", *arguments]
    subprocess.run(command, check=True, env=environment(), timeout=TIME_S)


def array(template: str, arguments: Sequence[str], folder: Path, tasks: int) -> None:
    folder.mkdir()
    options = [f"--array=1-{tasks}"]
    job = submit(
        template,
        arguments,
        folder=folder,
        nodes=1,
        environment=environment(),
        options=options,
    )
    for number in range(1, tasks + 1):
        task = Job(f"{job.id}_{number}")
        assert task.wait(TIME_S) == 0, task.log()


def tars(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("**/*.tar")}


@pytest.fixture
def coco(tmp_path: Path) -> list[str]:
    """Options that name a few photos with a square each."""
    images, annotations = [], []
    for number in range(PHOTOS):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 60, "height": 40})
        square = [5, 5, 25, 5, 25, 25, 5, 25]
        annotations.append({"id": number, "image_id": number, "segmentation": [square]})
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return ["coco", "--annotations", str(file), "--images", str(tmp_path)]


def test_array_packs_what_one_process_packs(coco: list[str], tmp_path: Path) -> None:
    given = [*coco, "--samples-per-shard", "1", "--workers", "0"]
    here("pack", *given, "--out", str(tmp_path / "one"))
    array("pack", [*given, "--out", str(tmp_path / "many")], tmp_path / "jobs", tasks=3)
    assert len(tars(tmp_path / "one")) == PHOTOS
    assert tars(tmp_path / "many") == tars(tmp_path / "one")


def test_array_embeds_what_one_process_embeds(toy: Toy, tmp_path: Path) -> None:
    setting = Setting(stage="pretrain", strategy="ddp")
    given = toy.arguments(setting, tmp_path / "run")
    here("embed-teacher", *given, f"features.dir={tmp_path}/one")
    array("embed_teacher", [*given, f"features.dir={tmp_path}/many"], tmp_path / "jobs", tasks=2)
    assert len(tars(tmp_path / "one")) > 2
    assert tars(tmp_path / "many") == tars(tmp_path / "one")


def test_job_evaluates_as_one_process_does(
    toy: Toy, reference: Callable[[Setting], Reference], tmp_path: Path
) -> None:
    run = reference(Setting(stage="finetune", strategy="fsdp")).run
    here("consolidate", str(run), str(tmp_path / "model.safetensors"))
    given = [
        f"model.name={toy.folder}/model.yaml",
        f"model.weights={tmp_path}/model.safetensors",
        f"shards={toy.folder}/shards/train-*.tar",
    ]
    here("evaluate", *given, f"out={tmp_path}/one.json")
    given.append(f"out={tmp_path}/job.json")
    job = submit("evaluate", given, folder=tmp_path, nodes=2, environment=environment())
    assert job.wait(TIME_S) == 0, job.log()
    by_job, by_one = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("job", "one")
    )
    assert (by_job.pop("run")["ranks"], by_one.pop("run")["ranks"]) == (2, 1)
    assert by_job["counts"]["photos"] > 0
    assert by_job == by_one
