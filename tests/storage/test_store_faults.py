"""Servers that falter: what passes is waited out, what does not is named at once."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from efficientsam_pl.data.shards import ShardsError, open_shards
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage import remote
from efficientsam_pl.storage.files import (
    StoredFile,
    atomic_write,
    consume_file,
    consume_stream,
    exists,
    list_files,
    list_patterns,
    read_file,
    read_json_file,
)
from efficientsam_pl.storage.filesystems import StoreRefusedError
from efficientsam_pl.storage.ranges import Range, RangeReader
from efficientsam_pl.storage.retries import PATIENCE_VARIABLE, SourceLostError
from efficientsam_pl.storage.tar import scan_headers

TarOf = Callable[[Path, dict[str, bytes]], Path]
Serve = Callable[..., Any]
FAULTS = ("failing", "cutting", "resetting", "shortening")
EXPIRED = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "5")


@pytest.fixture
def folder(tmp_path: Path, tar_of: TarOf) -> Path:
    """Three shards of two samples."""
    made = tmp_path / "served"
    made.mkdir()
    for n in range(3):
        tar_of(made / f"s-{n}.tar", {f"{n}{k}.txt": b"%d%d" % (n, k) * 4000 for k in range(2)})
    return made


@pytest.mark.parametrize("fault", FAULTS)
def test_range_is_whole_after_a_fault(fault: str, folder: Path, web: Serve) -> None:
    served = web(folder)
    setattr(served, fault, 2)
    [data] = RangeReader().read([Range(f"{served.url}/s-0.tar", 600, 5000)])
    assert data == (folder / "s-0.tar").read_bytes()[600:5600]
    assert len(served.requests) == 3


@pytest.mark.parametrize("fault", FAULTS)
def test_headers_are_read_right_after_a_fault(fault: str, folder: Path, web: Serve) -> None:
    served = web(folder)
    setattr(served, fault, 2)
    scan = consume_file(f"{served.url}/s-1.tar", scan_headers)
    assert [member.name for member in scan.members] == ["10.txt", "11.txt"]
    assert scan.faults == []


@pytest.mark.parametrize("fault", ["failing", "cutting", "resetting"])
def test_stream_and_whole_file_are_right_after_a_fault(
    fault: str, folder: Path, web: Serve
) -> None:
    served, whole = web(folder), (folder / "s-2.tar").read_bytes()
    setattr(served, fault, 1)
    assert read_file(f"{served.url}/s-2.tar") == whole
    setattr(served, fault, 1)
    assert consume_stream(f"{served.url}/s-2.tar", lambda file: file.read(10**6)) == whole


def test_busy_server_gets_the_pause_that_it_requests(folder: Path, web: Serve) -> None:
    served = web(folder)
    served.failing, served.status, served.headers = 1, 429, {"Retry-After": "2"}
    begun = time.monotonic()
    assert read_file(f"{served.url}/s-0.tar") == (folder / "s-0.tar").read_bytes()
    assert 1.9 < time.monotonic() - begun < 4


def test_range_that_always_comes_short_is_lost_and_no_corrupt_sample(
    folder: Path, web: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0")
    served = web(folder)
    served.shortening = 10**6
    with pytest.raises(SourceLostError, match=r"s-0\.tar does not .* 2500 of 5000 bytes at 600"):
        RangeReader().read([Range(f"{served.url}/s-0.tar", 600, 5000)])


@pytest.mark.parametrize("status", [401, 403])
def test_denied_access_is_named_at_once(status: int, folder: Path, web: Serve) -> None:
    served = web(folder)
    served.denied = (status, EXPIRED)
    url = f"{served.url}/s-0.tar?signature=secret"
    begun = time.monotonic()
    for read in (
        lambda: RangeReader().read([Range(url, 600, 50)]),
        lambda: read_file(url),
        lambda: list_files(url),
        lambda: consume_file(url, scan_headers),
        lambda: open_shards(url),
    ):
        with pytest.raises(StoreRefusedError, match="Request has expired") as caught:
            read()
        message = str(caught.value)
        assert message.startswith(f"{served.url}/s-0.tar: access is denied")
        assert str(status) in message
        assert "\n" not in message
        assert "secret" not in message
    assert time.monotonic() - begun < 3


def test_login_page_is_named_at_once(folder: Path, web: Serve) -> None:
    served = web(folder)
    served.login = True
    url = f"{served.url}/s-0.tar"
    begun = time.monotonic()
    for read in (
        lambda: RangeReader().read([Range(url, 600, 50)]),
        lambda: read_file(url),
        lambda: list_files(url),
        lambda: open_shards(url),
    ):
        with pytest.raises(StoreRefusedError, match=r"s-0\.tar: the server sends a web page"):
            read()
    assert time.monotonic() - begun < 3


def test_indexes_that_a_store_denies_are_made_elsewhere(
    folder: Path, tmp_path: Path, web: Serve
) -> None:
    """S3 denies what does not exist to those who may not list a bucket."""
    served = web(folder)
    served.denied_names = ("manifest.json", "index.json")
    first = open_shards(f"{served.url}/s-{{0..2}}.tar")
    assert first.sizes() == [2, 2, 2]
    served.requests.clear()
    assert open_shards(f"{served.url}/s-{{0..2}}.tar") == first
    assert not [name for name, _ in served.requests if name.endswith(".tar")]


@pytest.mark.parametrize(
    "queries", [("?download=1",) * 2, ("?sig=a/b%2Fc&t=1", "?sig=d/e&t=2"), ("", "?sig=x")]
)
def test_index_of_a_web_address_is_named_by_its_path(
    queries: tuple[str, str], folder: Path, web: Serve
) -> None:
    served = web(folder)
    first = open_shards(f"{served.url}/s-1.tar{queries[0]}")
    served.requests.clear()
    second = open_shards(f"{served.url}/s-1.tar{queries[1]}")
    assert second.fingerprint() == first.fingerprint()
    assert [s.sha256 for s in second.shards] == [s.sha256 for s in first.shards]
    assert not [name for name, _ in served.requests if name.endswith(".tar")]
    [sample] = [s for s in second.samples() if s.key == "11"]
    [text] = RangeReader().read([*sample.files.values()])
    assert text == b"11" * 4000


def test_response_that_is_no_json_is_neither_read_whole_nor_printed(
    folder: Path, web: Serve
) -> None:
    (folder / "a.json").write_bytes(b"\xff" * (32 << 20))
    served = web(folder)
    assert read_json_file(f"{served.url}/a.json") is None
    (folder / "s-0.tar.index.json").write_bytes(b"\xff" * (1 << 20))
    assert open_shards(f"{served.url}/s-0.tar").sizes() == [2]


def test_server_without_ranges_is_reported_once_with_the_key_that_helps(
    folder: Path, web: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_without_ranges", set())
    served = web(folder, ranges=False)
    reader = RangeReader()
    for offset in (0, 600, 700):
        reader.read([Range(f"{served.url}/s-0.tar", offset, 50)])
    [record] = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "data.cache_dir" in record.message
    assert served.url.removeprefix("http://") in record.message


@pytest.mark.parametrize("ranges", [True, False])
def test_one_byte_shows_whether_a_server_sends_ranges(
    ranges: bool,
    folder: Path,
    web: Serve,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_without_ranges", "_probed"):
        monkeypatch.setattr(remote, name, set())
    served = web(folder, ranges)
    for name in ("s-0.tar", "s-1.tar"):
        remote.check_ranges(f"{served.url}/{name}", log=True)
    remote.check_ranges(f"{folder}/s-0.tar", log=True)
    assert [name for name, _ in served.requests] == ["s-0.tar"]
    assert ["data.cache_dir" in line for line in caplog.messages] == [True] * (not ranges)
    RangeReader().read([Range(f"{served.url}/s-0.tar", 600, 50)])
    assert len(caplog.messages) == (not ranges)


@pytest.mark.parametrize("status", [503, 429])
def test_server_that_falters_does_not_make_an_index_missing(
    status: int, folder: Path, web: Serve
) -> None:
    (folder / "manifest.json").write_bytes(b"{}")
    served = web(folder)
    served.failing_heads, served.status = 2, status
    assert exists(f"{served.url}/manifest.json")
    assert not exists(f"{served.url}/other.json")


ODD = ("x::y.tar", "a b.tar", "[a].tar", "{a}.tar", "ü.tar", "%2F.tar", "#.tar", "a,b.tar")


@pytest.fixture
def bucket(s3: None) -> Iterator[str]:
    fs = fsspec.filesystem("s3")
    fs.mkdir("odd-bucket")
    yield "odd-bucket"
    fs.invalidate_cache()
    fs.rm("odd-bucket", recursive=True)


def test_odd_keys_do_not_stop_a_listing(bucket: str, folder: Path) -> None:
    fs = fsspec.filesystem("s3")
    content = (folder / "s-0.tar").read_bytes()
    for key in ODD:
        fs.call_s3("put_object", Bucket=bucket, Key=f"odd/{key}", Body=content)
    listed = list_files(f"s3://{bucket}/odd/*.tar")
    assert [file.path for file in listed] == sorted(f"s3://{bucket}/odd/{key}" for key in ODD)
    shards = open_shards(f"s3://{bucket}/odd/*.tar")
    assert shards.sizes() == [2] * len(ODD)
    for sample in shards.samples():
        [text] = RangeReader().read([*sample.files.values()])
        assert text == sample.key.encode() * 4000


def test_many_shards_in_braces_are_one_listing(
    bucket: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = fsspec.filesystem("s3")
    for n in range(12):
        fs.pipe(f"{bucket}/in/s-{n:02d}.tar", b"x" * n)
    fs.invalidate_cache()
    calls: list[str] = []
    call = type(fs)._call_s3

    async def counted(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(method)
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(type(fs), "_call_s3", counted)
    pattern = f"s3://{bucket}/in/s-{{00..13}}.tar"
    listed = list_patterns(pattern)
    assert len(calls) == 1
    for n in range(14):
        name = f"s3://{bucket}/in/s-{n:02d}.tar"
        assert listed[name] == ([StoredFile(name, n)] if n < 12 else [])


def test_file_named_without_stars_is_taken_whatever_its_name(tmp_path: Path, tar_of: TarOf) -> None:
    tar_of(tmp_path / "shard", {"0.txt": b"x"})
    assert open_shards(f"{tmp_path}/shard").sizes() == [1]
    with pytest.raises(ShardsError, match="no shard matches"):
        open_shards(f"{tmp_path}/sh*")


def test_full_disk_names_the_folder_for_uploads(
    mount_disk: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = mount_disk()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(disk.path))
    with (
        pytest.raises(OSError, match=r"No space left .* memory://a/b\.bin \(TMPDIR") as caught,
        atomic_write("memory://a/b.bin") as file,
    ):
        file.write(b"x" * (4 << 20))
    assert caught.value.filename == str(disk.path)


def test_full_disk_names_the_file(mount_disk: Callable[[], Any]) -> None:
    path = mount_disk().path / "a.bin"
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(str(path)) as file:
        file.write(b"x" * (4 << 20))
    assert caught.value.filename == str(path)


def test_protocol_that_is_unknown_is_one_line() -> None:
    with pytest.raises(UserError, match=r"nowhere://a/b\.tar cannot be opened"):
        list_files("nowhere://a/b.tar")
