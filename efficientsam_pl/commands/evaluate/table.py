"""An evaluation's result as a table for the terminal, by size of object."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from efficientsam_pl.evaluation.metrics.sizes import SIZES
from efficientsam_pl.evaluation.results.result_file import Result

_BOUNDS = {
    "filled box": "filled_box_miou",
    "filled box via mask grid": "filled_box_grid_miou",
    "reachable by mask grid": "reachable_miou",
}


def result_table(result: Result) -> Table:
    """mIoU and AP by protocol, then what they are measured by; 80 columns wide at most."""
    table = Table(title=f"{result.model['name']} on {result.data['kind']}")
    table.add_column()
    counts = {"all": result.counts["instances"]}
    counts |= {size: result.counts[f"{size}_instances"] for size in SIZES}
    for name, count in counts.items():
        table.add_column(f"{name}\n({count})", justify="right")
    for protocol, numbers in result.numbers.items():
        if "miou" in numbers:
            _add(table, f"{protocol} mIoU", numbers["miou"])
        if "ap" in numbers:
            ap = {size: numbers["ap"].get(f"ap_{size}") for size in SIZES}
            _add(table, f"{protocol} AP", {"all": numbers["ap"]["ap"], **ap})
    table.add_section()
    for title, key in _BOUNDS.items():
        bound = result.numbers.get("box", {}).get(key)
        if bound is not None:
            _add(table, title, bound)
    return table


def _add(table: Table, title: str, values: Mapping[str, Any]) -> None:
    table.add_row(title, *(_shown(values[size]) for size in ("all", *SIZES)))


def _shown(value: float | None) -> str:
    return "" if value is None or value < 0 else f"{value:.3f}"  # AP of nothing is -1
