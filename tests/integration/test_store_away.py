"""Commands whose store stays away: exit code 75, and the same command continues."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.cli import main as cli
from efficientsam_pl.data.packing.images import MaskedImage, pack_images
from efficientsam_pl.data.schema import annotation_of
from efficientsam_pl.rle import encode
from efficientsam_pl.storage.retries import PATIENCE_VARIABLE

Serve = Callable[..., Any]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(PATIENCE_VARIABLE, "0")
    monkeypatch.setenv("EFFICIENTSAM_JOB_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (40, 60, 3), np.uint8)


def requested(state: Path) -> dict[str, int]:
    """Read the files of the batch script."""
    names = ("exit", "requeue")
    return {n: int((state / n).read_text()) for n in names if (state / n).exists()}


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def test_packing_keeps_its_whole_shards_and_continues(
    tmp_path: Path, web: Serve, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    served = web(tmp_path / "images")
    for number in range(8):
        file = io.BytesIO()
        Image.fromarray(pixels(number)).save(file, "JPEG")
        (tmp_path / "images" / f"{number}.jpg").write_bytes(file.getvalue())
    urls = "".join(f"{served.url}/{number}.jpg\n" for number in range(8))
    (tmp_path / "list.txt").write_text(urls)

    def pack(out: str) -> int:
        source = ["--source", str(tmp_path / "list.txt"), "--out", str(tmp_path / out)]
        more = ["--samples-per-shard", "2", "--workers", "0", "--store-patience", "0"]
        return cli.main(["pack", "imagenet", *source, *more])

    assert pack("straight") == 0
    served.requests.clear()
    served.away_after = 5
    assert pack("cut") == 75
    assert requested(home) == {"exit": 75, "requeue": 1}
    line = capfd.readouterr().err.strip()
    assert line.startswith(f"efficientsam: {served.url}/")
    assert line.endswith("the same command continues")
    assert "does not respond after 5 tries" in line
    assert f"2 whole shards in {tmp_path}/cut" in line
    done = tars(tmp_path / "cut")
    assert len(done) == 2
    served.away_after = None
    served.requests.clear()
    assert pack("cut") == 0
    assert len(served.requests) == 4  # of the other two shards
    assert tars(tmp_path / "cut") == tars(tmp_path / "straight")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    def masked(number: int) -> MaskedImage:
        mask = np.zeros((40, 60), bool)
        mask[5 : 10 + number, 5:40] = True
        return MaskedImage(f"photo{number}", pixels(number), (annotation_of(encode(mask)),))

    folder = tmp_path / "shards"
    folder.mkdir()
    pack_images(map(masked, range(9)), folder, "s", samples_per_shard=3)
    return folder


def test_evaluation_keeps_what_is_scored_and_continues(
    tmp_path: Path, shards: Path, web: Serve, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    served = web(shards)

    def evaluate(out: str) -> int:
        keys = ("baseline=filled_box", "protocols=[box]", "store_patience_s=0", "accelerator=cpu")
        url = f"{served.url}/s-00000{{0..2}}.tar"
        return cli.main(["evaluate", f"shards={url}", f"out={tmp_path / out}", *keys])

    assert evaluate("straight.json") == 0
    served.requests.clear()
    served.away_after = 6
    assert evaluate("cut.json") == 75
    assert requested(home) == {"exit": 75, "requeue": 1}
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert "does not respond" in line
    assert f"photos that are done are kept in {tmp_path}/cut.parts" in line
    served.away_after = None
    assert evaluate("cut.json") == 0
    results = [json.loads((tmp_path / f"{n}.json").read_text()) for n in ("cut", "straight")]
    assert results[0]["protocols"] == results[1]["protocols"]


def test_check_ends_with_the_code_of_a_store_and_not_of_a_bad_set(
    shards: Path, web: Serve, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    served = web(shards)
    command = ["check-shards", f"{served.url}/s-000000.tar", "--workers", "0"]
    assert cli.main(command) == 0
    served.requests.clear()
    served.away_after = 2
    assert cli.main(command) == 75
    assert "s-000000.tar" in capfd.readouterr().err
    assert requested(home) == {"exit": 75, "requeue": 1}


@pytest.mark.parametrize("status", [401, 403])
def test_denied_access_is_the_users_to_mend(
    status: int, shards: Path, web: Serve, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    served = web(shards)
    served.denied = (status, b"")
    assert cli.main(["check-shards", f"{served.url}/s-000000.tar", "--workers", "0"]) == 2
    assert requested(home) == {"exit": 2}
    assert "access is denied" in capfd.readouterr().err


def test_report_of_a_check_goes_to_a_store(shards: Path, s3: None) -> None:
    fsspec.filesystem("s3").mkdir("reports")
    command = ["check-shards", f"{shards}/*.tar", "--workers", "0", "--json"]
    assert cli.main([*command, "s3://reports/in/check.json"]) == 0
    report = json.loads(fsspec.filesystem("s3").cat_file("reports/in/check.json"))
    assert (report["shards"], report["samples"], report["bad"]) == (3, 9, [])
    assert cli.main([*command, "s3://nowhere/check.json"]) == 2


@pytest.mark.parametrize("name", ["set.tar.gz", "set.zip", "set.tgz"])
def test_compressed_source_is_refused_by_its_first_bytes(
    name: str, tmp_path: Path, web: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    content = b"PK\x03\x04" if name.endswith("zip") else gzip.compress(b"")[:4]
    (tmp_path / name).write_bytes(content + b"\0" * 1000)
    for source in (tmp_path / name, f"{web(tmp_path).url}/{name}"):
        command = ["pack", "imagenet", "--source", str(source), "--out", str(tmp_path / "out")]
        assert cli.main(command) == 2
        assert "is compressed (" in capfd.readouterr().err


def test_tar_of_another_name_is_read_as_a_tar(tmp_path: Path, tar_of: Any) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels(0)).save(file, "JPEG")
    source = tar_of(tmp_path / "IMAGES.TAR", {"0.jpg": file.getvalue()})
    command = ["pack", "imagenet", "--source", str(source), "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--workers", "0"]) == 0
    assert len(tars(tmp_path / "out")) == 1


def test_folder_with_a_manifest_of_another_program_is_not_packed_into(
    shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text('{"name": "web app"}')
    command = ["pack", "sa1b", "--source", f"{shards}/*", "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--workers", "0"]) == 2
    assert "manifest.json is not of this program" in capfd.readouterr().err
    assert list(tars(tmp_path / "out")) == []
