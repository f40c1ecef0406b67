import json
import random
import subprocess
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.faults.campaign import main, trial_plan
from benchmarks.faults.injection import KINDS, corrupt_file, fill
from benchmarks.faults.tally import Trial, write_tally
from benchmarks.faults.toy_runs import GLOBAL_BATCH, PHOTOS, STEPS, Setting, build_toy
from benchmarks.faults.trial_site import last_step, small_disk
from efficientsam_pl.checkpoints.layout import (
    CheckpointError,
    file_records,
    find_corruption,
    write_manifest,
)
from efficientsam_pl.cli.config_options import check_inputs
from efficientsam_pl.config import load as configs
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig


def test_every_kind_comes_once_a_turn_and_a_seed_draws_the_same_again() -> None:
    turns = [
        [trial_plan(3, number)[0] for number in range(n, n + len(KINDS))] for n in (0, len(KINDS))
    ]
    for turn in turns:
        assert Counter(turn) == Counter(list(KINDS))
    assert turns[0] != turns[1]
    kind, setting, draw = trial_plan(3, 17)
    again, same_setting, same_draw = trial_plan(3, 17)
    assert (kind, setting, draw.random()) == (again, same_setting, same_draw.random())


def test_a_turn_has_both_stages_and_both_strategies() -> None:
    settings = [trial_plan(0, number)[1] for number in range(len(KINDS))]
    assert {s.stage for s in settings} == {"pretrain", "finetune"}
    assert {s.strategy for s in settings} == {"ddp", "fsdp"}


def test_without_trials_only_the_tally_is_printed(
    good: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = tmp_path / "tally.json"
    write_tally(tally, [good, replace(good, number=5, hung=True)])
    assert main(["--trials", "0", "--tally", str(tally), "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    values = {row["id"]: row["value"] for row in record["rows"]}
    assert (values["faults.trials"], values["faults.hangs"]) == (2.0, 1.0)


def test_trials_without_a_cluster_say_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CONF", raising=False)
    with pytest.raises(SystemExit, match="local_cluster"):
        main(["--trials", "1"])


def test_the_toy_has_as_many_images_as_it_says_and_its_configs_are_accepted(tmp_path: Path) -> None:
    toy = build_toy(tmp_path)
    names = []
    for shard in sorted((tmp_path / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            names += [name.split(".")[0] for name in tar.getnames()]
    assert len(set(names)) == PHOTOS
    assert (STEPS * GLOBAL_BATCH) % PHOTOS != 0  # the last epoch is cut
    assert GLOBAL_BATCH % PHOTOS != 0
    for root, setting in (
        (PretrainConfig, Setting(stage="pretrain", strategy="fsdp", writing="background")),
        (FinetuneConfig, Setting(stage="finetune", strategy="ddp", workers=2)),
    ):
        _, file, *overrides = toy.arguments(setting, tmp_path / "run")
        config = configs.load(root, [file], overrides)
        check_inputs(config)
        assert config.trainer.strategy == setting.strategy
        assert config.data.workers == setting.workers
        assert config.run.trace


def test_the_newest_step_is_that_of_the_last_whole_line(tmp_path: Path) -> None:
    assert last_step(tmp_path) == -1
    lines = [json.dumps({"step": s, "rank": r, "keys": []}) for s in range(12) for r in (0, 1)]
    (tmp_path / "consumed.jsonl").write_text("\n".join(lines))
    assert last_step(tmp_path) == 11  # the other rank's line is cut
    (tmp_path / "consumed.jsonl").write_text(lines[0][:14])
    assert last_step(tmp_path) == -1


@pytest.mark.parametrize("seed", range(24))
def test_every_damage_is_one_that_the_checksums_find(
    tmp_path: Path, seed: int, sealed: Path
) -> None:
    before = {path.name: path.read_bytes() for path in sealed.iterdir()}
    description = corrupt_file(sealed, random.Random(seed))
    after = {path.name: path.read_bytes() for path in sealed.iterdir()}
    changed = [name for name in before if before[name] != after.get(name)]
    assert len(changed) == 1
    assert changed[0] in description
    if changed == ["complete.json"]:
        with pytest.raises(CheckpointError):
            find_corruption(sealed)
    else:
        assert find_corruption(sealed) is not None


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "step-00000004"
    folder.mkdir()
    for name in ("state.pt", "run.pt"):
        (folder / name).write_bytes(random.Random(name).randbytes(1000))
    write_manifest(folder, "plain", 4, "run.pt", file_records(sorted(folder.iterdir()), folder))
    return folder


def _mounts() -> bool:
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(not _mounts(), reason="no disk may be mounted here, which root may")
def test_a_small_disk_is_filled_to_the_last_byte_and_leaves_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    with small_disk(folder, 2):
        (folder / "kept").write_bytes(b"x" * 5000)
        fill(folder / "ballast")
        with pytest.raises(OSError, match="No space"):
            (folder / "more").write_bytes(b"y" * 5000)
        (folder / "ballast").unlink()
    assert (folder / "kept").read_bytes() == b"x" * 5000
    assert not folder.is_mount()
