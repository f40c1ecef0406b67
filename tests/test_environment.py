"""`make venv`: a clone's private environment holds its code, a shared one only the dependencies."""

import importlib.util
import json
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = """\
[project]
name = "efficientsam_pl"
dependencies = ["torch>=2", "fsspec[http]>=1"]
[project.optional-dependencies]
figure = ["matplotlib>=3"]
report = ["jinja2>=3", "efficientsam_pl[figure]"]
dev = ["efficientsam_pl[report, figure]", "ruff"]
"""
# A Python that writes what it was given instead of doing it; "-m venv FOLDER" puts it there
PYTHON = """\
#!/usr/bin/env bash
echo "$*" >>"{log}"
if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, in a small clone, with a Python that downloads nothing."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / ".ci/environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "pyproject.toml").write_text(PYPROJECT)
    python = tmp_path / "python"
    python.write_text(PYTHON.format(log=tmp_path / "log"))
    python.chmod(0o755)
    monkeypatch.setattr(module, "CLONE", clone)
    monkeypatch.setattr(module.sys, "executable", str(python))
    monkeypatch.chdir(clone)
    return module


def commands(folder: Path) -> list[str]:
    """List the arguments that Python was given since the last call."""
    log = folder / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [line for line in lines if line != "-m pip --version"]


def test_extras_that_name_extras_are_resolved(environment: ModuleType) -> None:
    listed = environment.requirements(tomllib.loads(PYPROJECT), "dev")
    assert listed == ["torch>=2", "fsspec[http]>=1", "jinja2>=3", "matplotlib>=3", "ruff"]


def test_dependencies_of_this_project_are_requirements_and_never_itself(
    environment: ModuleType,
) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = {Requirement(line).name for line in environment.requirements(pyproject, "dev")}
    assert {"torch", "pytest", "scikit-image", "s3fs"} <= names
    assert "efficientsam_pl" not in names


@pytest.mark.parametrize("name", [".venv", ".venv/", "./sub/../.venv", "{clone}/.venv"])
def test_private_environment_holds_the_code_and_is_made_once(
    name: str, environment: ModuleType, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    folder = Path(name.format(clone=clone))
    environment.main(folder)
    made, _, installed = commands(tmp_path)
    assert made == f"-m venv {clone}/.venv"
    assert installed == f"-m pip install --quiet --editable {clone}[dev]"
    environment.main(folder)
    assert commands(tmp_path) == []


@pytest.mark.parametrize("name", ["../shared", "../shared/", "{clone}/../shared", "link"])
def test_environment_elsewhere_gets_the_dependencies_alone(
    name: str, environment: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "clone/link").symlink_to(tmp_path / "shared")
    environment.main(Path(name.format(clone=tmp_path / "clone")))
    made, _, installed = commands(tmp_path)
    assert made == f"-m venv {tmp_path}/shared"
    listed = "torch>=2 fsspec[http]>=1 jinja2>=3 matplotlib>=3 ruff"
    assert installed == f"-m pip install --quiet {listed}"


def test_second_clone_with_the_same_dependencies_installs_nothing(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.main(tmp_path / "shared")
    commands(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "pyproject.toml").write_text(PYPROJECT + "\n[tool.ruff]\nline-length = 90\n")
    monkeypatch.setattr(environment, "CLONE", other)
    environment.main(tmp_path / "shared")
    assert commands(tmp_path) == []
    (other / "pyproject.toml").write_text(PYPROJECT.replace("torch>=2", "torch>=3"))
    environment.main(tmp_path / "shared")
    assert "torch>=3" in commands(tmp_path)[-1]
    monkeypatch.setattr(environment, "CLONE", tmp_path / "clone")
    environment.main(tmp_path / "shared")  # what the other has installed may be wrong here
    assert "torch>=2" in commands(tmp_path)[-1]


@pytest.mark.parametrize(
    ("origin", "removed"),
    [
        ({"url": "file:///other", "dir_info": {"editable": True}}, True),
        ({"url": "file:///other", "dir_info": {}}, False),
        ({"url": "file://{parent}", "dir_info": {"editable": True}}, False),
    ],
    ids=["of another clone", "not editable", "of the clone whose private environment this is"],
)
def test_clone_installed_into_a_shared_environment_is_removed(
    origin: dict[str, Any], removed: bool, environment: ModuleType, tmp_path: Path
) -> None:
    environment.main(tmp_path / "shared")
    commands(tmp_path)
    about = tmp_path / "shared/lib/python3.11/site-packages/efficientsam_pl-0.1.0.dist-info"
    about.mkdir(parents=True)
    content = json.dumps(origin).replace("{parent}", str(tmp_path))
    (about / "direct_url.json").write_text(content)
    environment.main(tmp_path / "shared")
    removal = ["-m pip uninstall --quiet --yes efficientsam_pl"]
    assert commands(tmp_path) == (removal if removed else [])


def test_clone_and_those_that_share_its_environment_install_once_each(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.main(Path(".venv"))
    monkeypatch.setattr(environment, "CLONE", tmp_path / "other")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/pyproject.toml").write_text(PYPROJECT)
    environment.main(tmp_path / "clone/.venv")
    commands(tmp_path)
    for clone in ("clone", "other", "clone"):
        monkeypatch.setattr(environment, "CLONE", tmp_path / clone)
        environment.main(tmp_path / "clone/.venv")
    assert commands(tmp_path) == []


def test_failed_install_is_tried_again(environment: ModuleType, tmp_path: Path) -> None:
    python = tmp_path / "python"
    whole = python.read_text()
    python.write_text(whole + 'case "$*" in *torch*) exit 1 ;; esac\n')
    with pytest.raises(environment.subprocess.CalledProcessError):
        environment.main(tmp_path / "shared")
    (tmp_path / "shared/bin/python").write_text(whole)
    commands(tmp_path)
    environment.main(tmp_path / "shared")
    assert "torch>=2" in commands(tmp_path)[-1]
