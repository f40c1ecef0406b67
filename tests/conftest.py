"""What every test has: checked shapes, two threads, and the shared photos where there are any."""

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# Before anything imports the package: what is imported already is not checked
install_import_hook("efficientsam_pl", "beartype.beartype")
torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("EFFICIENTSAM_SHARED", default))
    if not (folder / "data").is_dir():
        pytest.skip(f"no test photos in {folder}/data: set EFFICIENTSAM_SHARED to their parent")
    return folder
