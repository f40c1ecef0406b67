"""The config files that come with the package: their names, what each is for, where they lie."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

_LONG = 100  # characters of a sentence whose part before a colon is enough


@dataclass(frozen=True)
class ShippedConfig:
    """A file, which `-c NAME` finds; `about` is the first sentence of its comment."""

    name: str
    path: Path

    @property
    def about(self) -> str:
        """What it is for."""
        lines = []
        for line in self.path.read_text().splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.lstrip("# ").strip())
        sentence = re.split(r"(?<=\S)\. (?=[A-Z])|; see ", " ".join(lines))[0].rstrip(".")
        return sentence if len(sentence) <= _LONG else sentence.partition(": ")[0]


def config_folders() -> list[Path]:
    """Where they lie: in an installed package, in a clone."""
    here = Path(__file__).parents[1]
    return [folder for folder in (here / "configs", here.parent / "configs") if folder.is_dir()]


def shipped_configs() -> list[ShippedConfig]:
    """All of them by name."""
    found = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for folder in reversed(config_folders())
        for path in folder.rglob("*.yaml")
    }
    return [ShippedConfig(name, found[name]) for name in sorted(found)]


def find_config(name: str) -> Path | None:
    """The file itself, or the shipped one: `finetune/ti` is configs/finetune/ti.yaml."""
    shipped = (folder / f"{name.removesuffix('.yaml')}.yaml" for folder in config_folders())
    return next((path for path in (Path(name), *shipped) if path.is_file()), None)


def near_configs(name: str) -> str:
    """What to take instead of a name that is none, as the rest of a sentence."""
    names = [one.name for one in shipped_configs()]
    wanted = name.removesuffix(".yaml")
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    folder = (
        wanted.partition("/")[0] if "/" in wanted else near[0].partition("/")[0] if near else ""
    )
    beside = [one.partition("/")[2] for one in names if one.startswith(f"{folder}/")]
    hint = f"; did you mean {near[0]}?" if near else ""
    listed = f" {folder}/ has {', '.join(beside)};" if beside else ""
    return f"{hint or ';'}{listed} `efficientsam configs` lists all"
