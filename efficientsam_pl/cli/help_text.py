"""Text at the end of --help: main keys, shipped configs, an example."""

import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from efficientsam_pl.config.fields import leaves
from efficientsam_pl.config.printing import as_yaml, choices
from efficientsam_pl.config.shipped import shipped_configs


def explain_config(root: type[Any]) -> str:
    """List the main keys of a config's class with their comments, shipped configs, and an example.

    Args:
        root: Has a CommandHelp as `HELP`.
    """
    meaning = {
        leaf.key: as_yaml(f"{leaf.comment} {choices(leaf.type)}".strip()) for leaf in leaves(root)
    }
    shipped = [
        (config.name, config.about)
        for beginning in root.HELP.configs
        for config in shipped_configs()
        if config.name.startswith(beginning)
    ]
    return "\n".join(
        (
            "main keys (--print-config lists all of them):",
            *two_columns([(key, meaning[key]) for key in root.HELP.keys]),
            "",
            "configs for -c:",
            *two_columns(shipped),
            "",
            "example:",
            textwrap.indent(root.HELP.example, "  "),
            "",
        )
    )


def two_columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Align names and their meaning in two columns as wide as the terminal."""
    width = min(max(shutil.get_terminal_size().columns, 60), 100)
    first = max(len(name) for name, _ in rows) + 4
    lines = []
    for name, text in rows:
        gap = " " * first
        wrapped = textwrap.wrap(
            text, width, initial_indent=gap, subsequent_indent=gap, break_on_hyphens=False
        )
        head = (wrapped or [gap])[0][first:]
        lines += [f"  {name:<{first - 2}}{head}".rstrip(), *wrapped[1:]]
    return lines
