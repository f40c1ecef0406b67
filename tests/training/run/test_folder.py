"""Contents of a run's folder are resumed, set aside or refused, never mixed and never lost."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import yaml

from efficientsam_pl.checkpoints.layout import (
    MANIFEST,
    CheckpointError,
    file_records,
    find_corruption,
    partial_path,
    publish_checkpoint,
    step_folder,
    write_manifest,
    write_pointer,
)
from efficientsam_pl.cluster.launch import Launch
from efficientsam_pl.config.load import as_dict, from_dict
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.filesystems import store
from efficientsam_pl.storage.mirror import Mirror, StoredFolder
from efficientsam_pl.storage.retries import PATIENCE_VARIABLE
from efficientsam_pl.training.config import RecipeConfig, RunConfig
from efficientsam_pl.training.run.folder import RunFolder, open_run

Recipe = dict[str, Any]
Disk = Any
MountDisk = Callable[..., Disk]
OPTIM = {"peak_lr": 4e-4, "warmup_steps": 1}
TRAINER = {"max_steps": 6, "devices": 1, "micro_batch": 1}
RECIPE: Recipe = {"optim": OPTIM, "trainer": TRAINER}
OTHER = {"optim": OPTIM | {"peak_lr": 2e-4}, "trainer": TRAINER | {"max_steps": 9, "devices": 8}}
RECORDS = {"log/events.out.tfevents.1": b"curve", "consumed.jsonl": b"", "data_report.json": b"{}"}


def began(run: RunConfig, recipe: Recipe = RECIPE, launch: Launch | None = None) -> RunFolder:
    return open_run(config_of(run, recipe), launch or Launch())


def config_of(run: RunConfig, recipe: Recipe = RECIPE) -> RecipeConfig:
    return from_dict(RecipeConfig, {"run": as_dict(run), **recipe})


def save(folder: RunFolder, *steps: int, content: str = "weights") -> None:
    """Checkpoints as a run saves them, and its records."""
    for step in steps:
        final = step_folder(folder.local / "checkpoints", step)
        partial = partial_path(final)
        partial.mkdir(parents=True)
        (partial / "state.pt").write_text(f"{content} {step}")
        write_manifest(
            partial, "plain", step, "run.pt", file_records([partial / "state.pt"], partial)
        )
        publish_checkpoint(partial, final)
        for name, record in RECORDS.items():
            (folder.local / name).parent.mkdir(exist_ok=True)
            (folder.local / name).write_bytes(record)
        if folder.mirror is not None:
            folder.mirror.put([final / "state.pt"])
            folder.send_records()
            folder.mirror.put_last(final / MANIFEST)
        write_pointer(folder.local / "latest", final)
        if folder.mirror is not None:
            folder.mirror.put_last(folder.local / "latest")


def everything(path: str) -> dict[str, bytes]:
    """Files by name."""
    folder = StoredFolder(path)
    return {name: folder.read(name) or b"" for name in folder.files()}


def bucket_of(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "s3":
        request.getfixturevalue("s3")
    fs, bucket = fsspec.filesystem(request.param), "run-bucket"
    fs.mkdir(bucket)
    yield f"{request.param}://{bucket}/runs/run[1]"
    fs.rm(bucket, recursive=True)


@pytest.fixture(params=["local", "memory", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of a run; brackets in its name are no pattern."""
    if request.param == "local":
        yield str(tmp_path / "run[1]")
    else:
        yield from bucket_of(request)


@pytest.fixture
def run(address: str, tmp_path: Path) -> RunConfig:
    return RunConfig(dir=address, scratch=str(tmp_path / "scratch"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0")


def elsewhere(run: RunConfig, tmp_path: Path) -> RunConfig:
    """The same run on a machine that has nothing of it."""
    return replace(run, scratch=str(tmp_path / "fresh"))


def test_folder_holds_the_config_and_torch_is_seeded(run: RunConfig) -> None:
    seeded = replace(run, seed=5)
    folder = began(seeded)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert folder.resume == "auto"
    assert (folder.local / "checkpoints").is_dir()
    for place in (str(folder.local), run.dir):
        written = (StoredFolder(place).read("config.yaml") or b"").decode()
        assert from_dict(RecipeConfig, yaml.safe_load(written)) == config_of(seeded)


def test_other_ranks_write_nothing(run: RunConfig) -> None:
    for rank in (1, 2):
        began(run, launch=Launch("slurm", rank, rank, ranks_per_node=3))
    assert everything(run.dir) == {}


def test_run_anew_sets_all_of_the_old_one_aside(run: RunConfig) -> None:
    save(began(run), 3, 6)
    old = everything(run.dir)
    StoredFolder(run.dir).write("shards/train-0.tar", b"packed")
    StoredFolder(run.dir).write("notes.txt", b"mine")
    fresh = replace(run, resume="none")
    folder = began(fresh)
    assert folder.resume == "none"
    expected = {f"before-1/{name}": content for name, content in old.items()}
    expected |= {"shards/train-0.tar": b"packed", "notes.txt": b"mine"}
    found = everything(run.dir)
    assert found == expected | {"config.yaml": found["config.yaml"]}
    names = sorted(path.name for path in folder.local.iterdir() if not path.name.startswith("."))
    assert set(names) >= {"checkpoints", "config.yaml"}
    assert not {"latest", "log", "consumed.jsonl", "data_report.json"} & set(names)
    save(folder, 2)
    began(fresh)
    assert "before-2/checkpoints/step-00000002/state.pt" in everything(run.dir)
    assert everything(run.dir).items() >= expected.items()


def test_run_that_had_only_begun_is_not_worth_setting_aside(run: RunConfig) -> None:
    for _ in range(3):
        began(replace(run, resume="none"))
    assert StoredFolder(run.dir).names() in (["checkpoints", "config.yaml"], ["config.yaml"])


def test_run_of_another_recipe_is_refused_with_what_differs(run: RunConfig) -> None:
    save(began(run), 3)
    before = everything(run.dir)
    with pytest.raises(UserError) as refused:
        began(run, OTHER)
    assert str(refused.value) == (
        f"run.dir={run.dir} holds a run of another config: optim.peak_lr was 0.0004, now 0.0002; "
        "run.changed=accept goes on, run.resume=none starts over"
    )
    assert everything(run.dir) == before
    began(run, RECIPE | {"trainer": TRAINER | {"devices": 8}})  # where it runs may differ


def test_accepted_changes_are_told(run: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    save(began(run), 3)
    assert began(replace(run, changed="accept"), OTHER).resume == "auto"
    [told] = [m for m in map(logging.LogRecord.getMessage, caplog.records) if "goes on" in m]
    assert "optim.peak_lr was 0.0004, now 0.0002; trainer.max_steps was 6, now 9" in told
    assert "devices" not in told
    began(run, OTHER)  # it is this run's recipe now


def test_recipe_may_change_before_anything_is_saved(run: RunConfig) -> None:
    began(run)
    began(run, RECIPE | {"optim": OPTIM | {"peak_lr": 1.0}})


JOB = Launch("slurm", job="57_3")
AGAIN = replace(JOB, restarts=1)


def test_restarted_job_goes_on_though_its_config_says_anew(run: RunConfig) -> None:
    fresh = replace(run, resume="none")
    save(began(fresh), 3, content="old")
    first = began(fresh, launch=JOB)
    save(first, 3)
    restarted = began(fresh, launch=AGAIN)
    assert restarted.resume == "auto"
    assert (restarted.local / "latest").read_text() == "checkpoints/step-00000003\n"
    assert (restarted.local / "checkpoints/step-00000003/state.pt").read_text() == "weights 3"
    assert "before-2" not in StoredFolder(run.dir).names()


def test_job_that_was_restarted_before_it_did_anything_starts_over(run: RunConfig) -> None:
    """Otherwise it would resume what run.resume=none must leave alone."""
    fresh = replace(run, resume="none")
    save(began(run, launch=Launch("slurm", job="56")), 3)
    assert began(fresh, launch=AGAIN).resume == "none"
    assert "before-1" in StoredFolder(run.dir).names()


def test_ranks_agree_on_how_a_restarted_job_goes_on_in_any_order(run: RunConfig) -> None:
    fresh = replace(run, resume="none")
    began(fresh, launch=JOB)
    ranks = [replace(AGAIN, rank=rank, local_rank=rank, ranks_per_node=3) for rank in (2, 0, 1)]
    assert {began(fresh, launch=rank).resume for rank in ranks} == {"auto"}


def test_run_from_another_runs_checkpoint_sets_its_own_past_aside(
    run: RunConfig, tmp_path: Path
) -> None:
    other = replace(run, dir=f"{run.dir}-other")
    save(began(other), 3, 6, content="other")
    save(began(run), 9, content="own")
    there = f"{other.dir}/checkpoints/step-00000003"
    folder = began(replace(run, resume=there), RECIPE | {"optim": OPTIM | {"peak_lr": 1.0}})
    assert find_corruption(Path(folder.resume)) is None
    assert (Path(folder.resume) / "state.pt").read_text() == "other 3"
    assert "before-1/checkpoints/step-00000009/state.pt" in everything(run.dir)
    whole = began(replace(run, resume=other.dir))
    newest = Path(whole.resume) / (Path(whole.resume) / "latest").read_text().strip()
    assert (newest / "state.pt").read_text() == "other 6"


def test_restarted_job_prefers_its_own_newest_to_the_path_it_began_from(run: RunConfig) -> None:
    other = replace(run, dir=f"{run.dir}-other")
    save(began(other), 3)
    branch = replace(run, resume=other.dir)
    folder = began(branch, launch=JOB)
    assert began(branch, launch=AGAIN).resume == folder.resume  # it has saved nothing yet
    save(folder, 5)
    assert began(branch, launch=AGAIN).resume == "auto"


def test_run_that_goes_back_sets_its_later_checkpoints_aside(
    run: RunConfig, tmp_path: Path
) -> None:
    folder = began(run)
    save(folder, 3, 6, 9)
    StoredFolder(run.dir).write("best", b"checkpoints/step-00000006\n")
    back = replace(run, resume=f"{run.dir}/checkpoints/step-00000003")
    again = began(back)
    assert (Path(again.resume) / "state.pt").read_text() == "weights 3"
    found = everything(run.dir)
    assert found["latest"] == b"checkpoints/step-00000003\n"
    assert {name for name in found if name.endswith("state.pt")} == {
        "checkpoints/step-00000003/state.pt",
        "before-1/checkpoints/step-00000006/state.pt",
        "before-1/checkpoints/step-00000009/state.pt",
    }
    assert found["before-1/best"] == b"checkpoints/step-00000006\n"
    assert began(elsewhere(run, tmp_path)).resume == "auto"  # the next start resumes there


def test_runs_own_folder_as_the_path_is_auto(run: RunConfig) -> None:
    save(began(run), 3)
    assert began(replace(run, resume=f"{run.dir}/")).resume == "auto"
    assert "before-1" not in StoredFolder(run.dir).names()


@pytest.mark.parametrize("path", ["{run}/checkpoints/step-00000004", "maybe"])
def test_path_that_is_not_there_is_told_before_anything_is_moved(path: str, run: RunConfig) -> None:
    save(began(run), 3)
    before = everything(run.dir)
    path = path.format(run=run.dir)
    with pytest.raises(UserError, match="there is no such run or checkpoint") as raised:
        began(replace(run, resume=path))
    assert str(raised.value).startswith(f"run.resume={path}: ")
    assert everything(run.dir) == before


def test_config_that_is_no_yaml_is_told(run: RunConfig) -> None:
    save(began(run), 3)
    StoredFolder(run.dir).write("config.yaml", b"optim: {")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read as YAML"):
        began(run)


def test_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    for path in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(UserError, match=f"^run.dir={path} .*"):
            began(RunConfig(dir=str(path)))


def test_folder_that_may_not_be_written_is_told(mount_disk: MountDisk) -> None:
    path = mount_disk(options="ro").path
    with pytest.raises(UserError, match=f"run.dir={path}/run cannot be used: Read-only file sys"):
        began(RunConfig(dir=f"{path}/run"))


def test_disk_without_room_for_the_config_is_told(mount_disk: MountDisk) -> None:
    disk = mount_disk()
    disk.fill()
    with pytest.raises(UserError, match=f"run.dir={disk.path}/run cannot be used: No space left"):
        began(RunConfig(dir=f"{disk.path}/run"))


class TestRunInAStore:
    """Cases that a local folder cannot have: a copy that is older, newer, or on another machine."""

    @pytest.fixture(params=["memory", "s3"])
    def address(self, request: pytest.FixtureRequest) -> Iterator[str]:
        yield from bucket_of(request)

    def test_fresh_machine_goes_on_from_the_store(self, run: RunConfig, tmp_path: Path) -> None:
        save(began(run), 3, 6)
        folder = began(elsewhere(run, tmp_path))
        newest = folder.local / (folder.local / "latest").read_text().strip()
        assert (newest.name, find_corruption(newest)) == ("step-00000006", None)
        for name, content in RECORDS.items():
            assert (folder.local / name).read_bytes() == content
        older = folder.local / "checkpoints/step-00000003"  # known, so that it can be removed
        assert [path.name for path in older.iterdir()] == [MANIFEST]
        assert folder.mirror is not None
        folder.mirror.remove(older)
        assert not [name for name in everything(run.dir) if "step-00000003" in name]

    def test_kill_before_the_marker_leaves_the_checkpoint_before(
        self, run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = began(run)
        save(folder, 3)

        def killed(self: Mirror, path: Path) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Mirror, "put_last", killed)
            with pytest.raises(KeyboardInterrupt):
                save(folder, 6)
        assert "checkpoints/step-00000006/state.pt" in everything(run.dir)
        for start in (run, elsewhere(run, tmp_path)):
            again = began(start)
            assert (again.local / "latest").read_text() == "checkpoints/step-00000003\n"
            whole = sorted(path.name for path in (again.local / "checkpoints").iterdir())
            assert whole == ["step-00000003"]

    def test_marker_that_arrived_before_latest_did_counts(
        self, run: RunConfig, tmp_path: Path
    ) -> None:
        save(began(run), 3, 6)
        StoredFolder(run.dir).write("latest", b"checkpoints/step-00000003\n")
        folder = began(elsewhere(run, tmp_path))
        assert (folder.local / "latest").read_text() == "checkpoints/step-00000006\n"

    def test_damaged_checkpoint_is_skipped_for_the_one_before(
        self, run: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        save(began(run), 3, 6)
        StoredFolder(run.dir).write("checkpoints/step-00000006/state.pt", b"weights 7")
        folder = began(elsewhere(run, tmp_path))
        assert (folder.local / "latest").read_text() == "checkpoints/step-00000003\n"
        assert any("step-00000006 IS CORRUPT" in one.getMessage() for one in caplog.records)
        StoredFolder(run.dir).write("checkpoints/step-00000003/state.pt", b"short")
        with pytest.raises(CheckpointError, match="has no valid checkpoint to resume from"):
            began(replace(run, scratch=str(tmp_path / "third")))

    def test_half_a_marker_is_none(self, run: RunConfig, tmp_path: Path) -> None:
        save(began(run), 3)
        StoredFolder(run.dir).write(f"checkpoints/step-00000006/{MANIFEST}", b'{"version": 3,')
        folder = began(elsewhere(run, tmp_path))
        assert (folder.local / "latest").read_text() == "checkpoints/step-00000003\n"

    def test_what_only_an_old_scratch_has_is_not_the_runs(
        self, run: RunConfig, tmp_path: Path
    ) -> None:
        """The run went on elsewhere in between."""
        here = began(run)
        save(here, 3)
        save(RunFolder(here.local, None, "auto"), 6)  # never uploaded
        (here.local / "log/events.out.tfevents.2").touch()
        there = began(elsewhere(run, tmp_path))
        save(there, 5)
        again = began(run)
        assert (again.local / "latest").read_text() == "checkpoints/step-00000005\n"
        names = sorted(path.name for path in (again.local / "checkpoints").iterdir())
        assert names == ["step-00000003", "step-00000005"]
        assert [path.name for path in (again.local / "log").iterdir()] == ["events.out.tfevents.1"]

    def test_every_node_brings_its_own_copy_and_ranks_of_a_node_share_it(
        self, run: RunConfig
    ) -> None:
        save(began(run), 3)
        ranks = [
            Launch("slurm", rank, rank % 2, nodes=2, ranks_per_node=2, node=rank // 2)
            for rank in (3, 1, 2, 0)
        ]
        folders = {one.rank: began(run, launch=one) for one in ranks}
        assert folders[0].local == folders[1].local != folders[2].local == folders[3].local
        assert {rank: folder.apart for rank, folder in folders.items()} == {
            **{0: False, 1: False},
            **{2: True, 3: True},
        }
        for folder in folders.values():
            assert find_corruption(folder.local / "checkpoints/step-00000003") is None
        assert not (folders[2].local / "consumed.jsonl").exists()  # rank 0 alone writes it

    def test_unchanged_files_are_not_sent_again(
        self, run: RunConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = began(run)
        save(folder, 3)
        assert folder.mirror is not None
        fs, _ = store(run.dir)
        sent: list[str] = []
        put = fs.put_file
        monkeypatch.setattr(fs, "put_file", lambda a, b: (sent.append(b), put(a, b)))
        folder.send_records()
        assert sent == []
        (folder.local / "log/events.out.tfevents.1").write_bytes(b"curve goes on")
        (folder.local / "pictures").mkdir()
        (folder.local / "pictures/step-00000003.png").touch()
        folder.send_records()
        assert [name.rsplit("/", 2)[-1] for name in sent] == [
            "events.out.tfevents.1",
            "step-00000003.png",
        ]
        assert everything(run.dir)["log/events.out.tfevents.1"] == b"curve goes on"

    def test_files_of_an_unfinished_folder_get_its_final_name(self, run: RunConfig) -> None:
        folder = began(run)
        partial = folder.local / "checkpoints/.step-00000003.part"
        (partial / "state").mkdir(parents=True)
        (partial / "state/__0_0.distcp").write_bytes(b"shard")
        assert folder.mirror is not None
        files = [partial / "state/__0_0.distcp"]
        folder.mirror.put(files, root=partial, into="checkpoints/step-00000003")
        assert everything(run.dir)["checkpoints/step-00000003/state/__0_0.distcp"] == b"shard"


def test_bucket_that_is_not_there_is_told_in_one_line(s3: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^run\.dir=s3://nowhere/run cannot be used: ") as told:
        began(RunConfig(dir="s3://nowhere/run", scratch=str(tmp_path)))
    assert "\n" not in str(told.value)


def test_scratch_is_one_a_run_a_node_and_a_user(tmp_path: Path) -> None:
    fsspec.filesystem("memory").mkdir("names")
    run = RunConfig(dir="memory://names/run", scratch=str(tmp_path))
    digest = hashlib.sha256(b"memory://names/run").hexdigest()[:16]
    folder = began(run, launch=Launch("slurm", rank=8, node=1))
    assert folder.local == tmp_path / f"efficientsam-runs-{os.getuid()}/{digest}-node1/run"
