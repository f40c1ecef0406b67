"""Package versions, as recorded in results and checkpoints."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ABSENT = "not installed"
_PACKAGE = Path(__file__).parent


def versions(*packages: str) -> dict[str, str]:
    """Map packages to versions, or "not installed"; ours is that of the running code."""
    return {name: _version(name) for name in packages}


def package_version() -> str:
    """Return the version of this package, also for a checkout that is not installed."""
    return _version(_PACKAGE.name)


def _version(package: str) -> str:
    if package == _PACKAGE.name and (ours := _checkout_version()):
        return ours
    try:
        return version(package)
    except PackageNotFoundError:
        return ABSENT


def _checkout_version() -> str | None:
    """Read the version of a checkout, whose environment may lack it; None if installed."""
    pyproject = _PACKAGE.parent / "pyproject.toml"
    if not pyproject.exists():
        return None
    project = tomllib.loads(pyproject.read_text()).get("project", {})
    return project["version"] if project.get("name") == _PACKAGE.name else None
