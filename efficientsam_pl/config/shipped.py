"""The config files that ship with the package: names, descriptions, paths."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

_LONG = 100  # characters; of a longer sentence only the part before the colon is used


@dataclass(frozen=True)
class ShippedConfig:
    """A config file that `-c NAME` loads; `about` is the first sentence of its comment."""

    name: str
    path: Path

    @property
    def about(self) -> str:
        """First sentence of the file's comment."""
        lines = []
        for line in self.path.read_text().splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.lstrip("# ").strip())
        sentence = re.split(r"(?<=\S)\. (?=[A-Z])|; see ", " ".join(lines))[0].rstrip(".")
        return sentence if len(sentence) <= _LONG else sentence.partition(": ")[0]


def config_folders() -> list[Path]:
    """Return the folders of configs: of an installed package and of a clone."""
    here = Path(__file__).parents[1]
    return [folder for folder in (here / "configs", here.parent / "configs") if folder.is_dir()]


def shipped_configs() -> list[ShippedConfig]:
    """List all shipped configs by name."""
    paths = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for folder in reversed(config_folders())
        for path in folder.rglob("*.yaml")
    }
    return [ShippedConfig(name, paths[name]) for name in sorted(paths)]


def find_config(name: str) -> Path | None:
    """Find a file by path, or a shipped config: `finetune/ti` is configs/finetune/ti.yaml."""
    shipped = (folder / f"{name.removesuffix('.yaml')}.yaml" for folder in config_folders())
    return next((path for path in (Path(name), *shipped) if path.is_file()), None)


def near_configs(name: str) -> str:
    """Suggest shipped configs instead of an unknown name, as the end of a sentence."""
    names = [config.name for config in shipped_configs()]
    stem = name.removesuffix(".yaml")
    near = difflib.get_close_matches(stem, names, n=1, cutoff=0.6)
    folder = stem.partition("/")[0] if "/" in stem else near[0].partition("/")[0] if near else ""
    siblings = [other.partition("/")[2] for other in names if other.startswith(f"{folder}/")]
    hint = f"; did you mean {near[0]}?" if near else ""
    listed = f" {folder}/ has {', '.join(siblings)};" if siblings else ""
    return f"{hint or ';'}{listed} `efficientsam configs` lists all"
