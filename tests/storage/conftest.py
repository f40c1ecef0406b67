"""A patience that tests can wait for."""

from pathlib import Path

import pytest

from efficientsam_pl.storage.retries import PATIENCE_VARIABLE


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Gives up on a store at once; indexes of remote shards go to a new folder."""
    monkeypatch.setenv(PATIENCE_VARIABLE, "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
