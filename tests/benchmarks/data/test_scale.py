"""That memory and time of large sets are those of what is measured."""

from pathlib import Path

import pytest

from benchmarks.data import scale
from benchmarks.harness import json_line
from efficientsam_pl.data.shards import open_shards


def test_set_is_whole_and_its_names_are_resolved(tmp_path: Path) -> None:
    pattern = scale.write_set(tmp_path / "set", shards=3, samples=5)
    shards = open_shards(pattern)
    assert shards.sizes() == [5, 5, 5]
    assert shards.corrupt == ()
    assert [sample.key for sample in shards.samples()][:6] == [
        *(f"sa_{n}" for n in range(5)),
        "sa_0",
    ]
    assert scale.list_and_resolve(pattern) == {shard.path for shard in shards.shards}


def test_private_memory_is_what_a_process_allocates() -> None:
    shared = bytearray(64 << 20)
    none = scale.private_mib(lambda: len(shared))
    assert scale.private_mib(lambda: bytearray(b"x") * (32 << 20)) - none == pytest.approx(
        32, abs=3
    )


@pytest.mark.slow
def test_indexes_of_sa1b_take_little_private_memory(tmp_path: Path) -> None:
    rows = {row.id: row for row in scale.index_rows(tmp_path / "set", blocks=33)}
    assert rows["data.index_memory"].value < 40
    assert rows["data.index_memory_parsed"].value > 150  # what is measured is there


def test_commands_import_less_than_torch_and_little_more() -> None:
    rows = {row.id: row for row in scale.import_rows(["pack", "predict"], rounds=1)}
    assert json_line("data", list(rows.values()))
    assert rows["data.import_pack_memory"].met()
    assert rows["data.import_predict_memory"].met()
    assert rows["data.import_pack"].value < rows["data.import_predict"].value
