"""What a result or a checkpoint says of the programs that made it."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ABSENT = "not installed"


def versions(*packages: str) -> dict[str, str]:
    """By package; ours is in none where a checkout runs that is not installed."""
    return {name: _version(name) for name in packages}


def own_version() -> str:
    """Ours, also of a checkout that is not installed."""
    project = Path(__file__).parents[1] / "pyproject.toml"
    if project.is_file():  # what is installed may be another one
        return str(tomllib.loads(project.read_text())["project"]["version"])
    return _version("efficientsam_pl")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ABSENT
