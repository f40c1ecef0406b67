"""The version that a record names is that of the code that runs."""

import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from efficientsam_pl import versions as module
from efficientsam_pl.versions import versions

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def nothing_installed(package: str) -> str:
    raise module.PackageNotFoundError(package)


def test_checkout_that_is_not_installed_knows_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "version", nothing_installed)
    ours = tomllib.loads(PYPROJECT.read_text())["project"]["version"]
    assert versions("efficientsam_pl", "torch") == {
        "efficientsam_pl": ours,
        "torch": "not installed",
    }


def test_checkout_in_an_environment_with_another_release_names_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "version", lambda package: "0.0.1")
    assert versions("efficientsam_pl")["efficientsam_pl"] != "0.0.1"


@pytest.mark.parametrize("beside", [None, '[project]\nname = "other"\nversion = "9"\n'])
def test_installed_package_names_what_is_installed(
    beside: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of another project may lie in site-packages."""
    if beside is not None:
        (tmp_path / "pyproject.toml").write_text(beside)
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "efficientsam_pl")
    monkeypatch.setattr(module, "version", lambda package: f"{package} 0.0.1")
    assert versions("efficientsam_pl") == {"efficientsam_pl": "efficientsam_pl 0.0.1"}


def test_other_packages_are_those_of_the_environment() -> None:
    assert versions("pytest") == {"pytest": version("pytest")}
