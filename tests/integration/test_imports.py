"""Libraries that a command loads: they take most of its time and memory to start."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.integration.conftest import TinyModel

# in the order of their size: each takes a second or a hundred MiB, but for the last ones
HEAVY = (
    *("torch", "torch._dynamo", "torch._inductor", "sympy", "triton", "lightning", "torchvision"),
    *("timm", "torchmetrics", "huggingface_hub", "scipy", "matplotlib", "aiohttp", "webdataset"),
)
COMMAND = """
import json, sys
from efficientsam_pl.cli.main import main
if __name__ == "__main__":
    code = main(sys.argv[2:])
    print(json.dumps([code, [name for name in json.loads(sys.argv[1]) if name in sys.modules]]))
"""
WORKER = """
import json, sys
from efficientsam_pl.data.worker_pool import worker_pool
from efficientsam_pl.data.packing.runner import _write
from efficientsam_pl.data.shard_checks import check_shard
if __name__ == "__main__":
    import torch  # in this process, not in its workers
    with worker_pool(1) as pool:
        pool.submit(check_shard, None).exception()  # what it needs is imported
        pool.submit(_write, None, "").exception()
        names = pool.submit(eval, "list(__import__('sys').modules)").result()
        threads = pool.submit(eval, "__import__('torch').get_num_threads()").result()
    print(json.dumps([threads, [name for name in json.loads(sys.argv[1]) if name in names]]))
"""
DATA = """
import json, sys
import efficientsam_pl.data.build, efficientsam_pl.data.dataloaders
import efficientsam_pl.data.datasets.masks, efficientsam_pl.data.datasets.crops
import efficientsam_pl.data.datasets.eval, efficientsam_pl.data.features.dataset
print(json.dumps([0, [name for name in json.loads(sys.argv[1]) if name in sys.modules]]))
"""


def loaded(program: str, folder: Path, *arguments: str, cores: str = "4") -> tuple[int, list[str]]:
    """Return the program's number and the heavy libraries that it has loaded."""
    path = folder / "program.py"
    path.write_text(program)
    environ: Mapping[str, str] = {"OMP_NUM_THREADS": cores, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, path, json.dumps(HEAVY), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environ,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    code, names = json.loads(done.stdout.splitlines()[-1])
    return code, names


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    for number in range(3):
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return folder


def test_packing_and_checking_load_no_torch(images: Path, tmp_path: Path) -> None:
    pack = ("pack", "imagenet", "--source", str(images), "--out", f"{tmp_path}/shards")
    assert loaded(COMMAND, tmp_path, *pack, "--workers", "0") == (0, [])
    check = ("check-shards", f"{tmp_path}/shards/*.tar")
    assert loaded(COMMAND, tmp_path, *check, "--workers", "0") == (0, [])


def test_shrinking_images_loads_torch_alone(images: Path, tmp_path: Path) -> None:
    pack = ("pack", "imagenet", "--source", str(images), "--out", f"{tmp_path}/shards")
    assert loaded(COMMAND, tmp_path, *pack, "--workers", "0", "--long-side", "30") == (0, ["torch"])


def test_prediction_loads_torch_alone(tiny: "TinyModel", tmp_path: Path) -> None:
    arguments = tiny.predict("--point", "20,20", out=f"{tmp_path}/out")
    whole = [str(tiny.folder / a) if (tiny.folder / a).exists() else a for a in arguments]
    assert loaded(COMMAND, tmp_path, *whole) == (0, ["torch"])


def test_worker_of_a_pool_loads_no_torch_and_would_use_one_thread(tmp_path: Path) -> None:
    assert loaded(WORKER, tmp_path) == (1, [])


def test_data_pipeline_loads_torch_alone(tmp_path: Path) -> None:
    assert loaded(DATA, tmp_path) == (0, ["torch"])
