"""What a result or a checkpoint says of the programs that made it."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ABSENT = "not installed"
_PACKAGE = Path(__file__).parent


def versions(*packages: str) -> dict[str, str]:
    """By package, "not installed" for one that is missing; ours is that of the code that runs."""
    return {name: _version(name) for name in packages}


def package_version() -> str:
    """The version of this package, also of a checkout that is not installed."""
    return _version(_PACKAGE.name)


def _version(package: str) -> str:
    if package == _PACKAGE.name and (ours := _version_of_checkout()):
        return ours
    try:
        return version(package)
    except PackageNotFoundError:
        return ABSENT


def _version_of_checkout() -> str | None:
    """None for an installed package; a checkout's environment may hold none, or another release."""
    pyproject = _PACKAGE.parent / "pyproject.toml"
    if not pyproject.exists():
        return None
    project = tomllib.loads(pyproject.read_text()).get("project", {})
    return project["version"] if project.get("name") == _PACKAGE.name else None
