"""Sets up the virtual environment that make uses: python .ci/environment.py FOLDER.

A clone's own environment lies in the clone and holds its code, too: an editable install with the
command `efficientsam`. One that lies elsewhere may serve several clones: it holds the dependencies
alone, and PYTHONPATH names the code.
"""

import fcntl
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

CLONE = Path(__file__).resolve().parents[1]
EXTRA = "dev"  # what tests, checks and quickstart need
STAMP = ".efficientsam-"


def main(folder: Path) -> None:
    """Installs what is missing; two clones that do so at once do it one after the other."""
    folder = folder.expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    pyproject = _pyproject()
    needed = requirements(pyproject, EXTRA)
    stamp = STAMP + _checksum(needed)
    with (folder / ".efficientsam.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_relative_to(CLONE):
            code = _checksum([str(CLONE), pyproject])
            _install(folder, ["--editable", f"{CLONE}[{EXTRA}]"], f"{stamp}-{code}", keep=stamp)
        else:
            _remove_code(folder)
            _install(folder, needed, stamp, keep=stamp)


def requirements(pyproject: Mapping[str, Any], extra: str) -> list[str]:
    """List the dependencies of the project and an extra, also of the extras that it names."""
    project = pyproject["project"]

    def expanded(lines: list[str]) -> Iterator[str]:
        for line in lines:
            if extras := re.fullmatch(rf"{project['name']}\[(.+)\]", line):
                for name in extras[1].split(","):
                    yield from expanded(project["optional-dependencies"][name.strip()])
            else:
                yield line

    return list(dict.fromkeys(expanded([*project["dependencies"], f"{project['name']}[{extra}]"])))


def _pyproject() -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:
        version = sys.version.split()[0]
        sys.exit(f"Python 3.11 or later is needed, this is {version}: make venv PYTHON=python3.11")
    return tomllib.loads((CLONE / "pyproject.toml").read_text())


def _checksum(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def _install(folder: Path, what: list[str], stamp: str, keep: str) -> None:
    """Install unless the stamp is there; remove stamps that do not begin with `keep`."""
    if (folder / stamp).exists():
        return
    print(f"installing into {folder}: about 6 GB, once", flush=True)
    for other in folder.glob(f"{STAMP}*"):
        if not other.name.startswith(keep):
            other.unlink()
    if not _has_pip(folder):
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    _pip(folder, "install", "--quiet", "--upgrade", "pip")
    _pip(folder, "install", "--quiet", *what)
    (folder / stamp).touch()


def _remove_code(folder: Path) -> None:
    """Uninstalls a clone from an environment of several; one whose own environment it is stays."""
    for about in folder.glob("lib/python*/site-packages/efficientsam_pl-*.dist-info"):
        file = about / "direct_url.json"
        origin = json.loads(file.read_text()) if file.exists() else {}
        if origin.get("dir_info", {}).get("editable"):
            clone = Path(unquote(urlparse(origin["url"]).path))
            if not folder.is_relative_to(clone):
                _pip(folder, "uninstall", "--quiet", "--yes", "efficientsam_pl")


def _has_pip(folder: Path) -> bool:
    python = folder / "bin" / "python"
    if not python.exists():
        return False
    command = [str(python), "-m", "pip", "--version"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _pip(folder: Path, *arguments: str) -> None:
    subprocess.run([str(folder / "bin" / "python"), "-m", "pip", *arguments], check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("one folder is needed: make VENV=FOLDER")
    try:
        main(Path(sys.argv[1]))
    except subprocess.CalledProcessError as error:  # it has said why
        sys.exit(error.returncode)
