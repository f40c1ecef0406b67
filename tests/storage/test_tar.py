"""The pass over a tar against Python's tarfile, and each way a tar can be corrupt."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from efficientsam_pl.storage.tar import BLOCK, TarScan, scan_headers, scan_tar

TarOf = Callable[[Path, dict[str, bytes]], Path]
FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}
# the third member's header lies at byte 3072: each is a header and two blocks
THREE = {f"s{i}.bin": bytes([65 + i]) * 1024 for i in range(3)}


def by_tarfile(data: bytes) -> list[tuple[str, int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        return [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]


def places(scan: TarScan) -> list[tuple[str, int, int]]:
    return [(m.name, m.offset, m.size) for m in scan.members]


def names(scan: TarScan) -> list[str]:
    return [member.name for member in scan.members]


def scanned(data: bytes) -> TarScan:
    """By both readers, which must agree."""
    whole, headers = scan_tar(io.BytesIO(data)), scan_headers(io.BytesIO(data))
    assert whole.members == headers.members
    assert whole.faults == headers.faults
    return whole


def with_oddities(form: int) -> bytes:
    data = io.BytesIO()
    long = 60 if form == tarfile.USTAR_FORMAT else 150
    with tarfile.open(fileobj=data, mode="w", format=form) as tar:
        for name, size in {
            "a.jpg": 10,
            "empty.json": 0,
            "ü" * 40 + ".json": 511,
            "deep/" + "n" * long + ".jpg": 512,
            "deep/" + "n" * long + "/" + "m" * 90 + ".jpg": 513,
            "日本語.png": 1024,
        }.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = size, 1.5  # half a second: pax writes an extension for it
            tar.addfile(member, io.BytesIO(b"q" * size))
        for kind, target in {
            tarfile.DIRTYPE: "",
            tarfile.SYMTYPE: "t" * (90 if form == tarfile.USTAR_FORMAT else 180),
            tarfile.LNKTYPE: "a.jpg",
            tarfile.FIFOTYPE: "",
        }.items():
            other = tarfile.TarInfo(f"other{kind.decode()}.jpg")
            other.type, other.linkname = kind, target
            tar.addfile(other)
        last = tarfile.TarInfo("z.txt")
        last.size = 3
        tar.addfile(last, io.BytesIO(b"end"))
    return data.getvalue()


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_files_lie_where_tarfile_finds_them(form: int) -> None:
    data = with_oddities(form)
    scan = scanned(data)
    assert places(scan) == by_tarfile(data)
    assert len(scan.members) == 7
    assert scan.faults == []
    assert (scan.bytes, scan.sha256) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("seed", range(20))
def test_random_tars_are_read_as_tarfile_reads_them(seed: int) -> None:
    draw = np.random.default_rng(seed)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=list(FORMATS.values())[seed % 2]) as tar:
        for i in range(int(draw.integers(0, 12))):
            name = "".join(chr(c) for c in draw.integers(0x41, 0x250, draw.integers(1, 200)))
            member = tarfile.TarInfo(f"{name.replace('/', '_')}.{i}")
            member.size = int(draw.integers(0, 3000))
            tar.addfile(member, io.BytesIO(draw.bytes(member.size)))
    scan = scanned(data.getvalue())
    assert places(scan) == by_tarfile(data.getvalue())
    assert scan.faults == []


def test_tar_inside_another_file_is_found_at_its_place() -> None:
    data = with_oddities(tarfile.GNU_FORMAT)
    scan = scan_headers(io.BytesIO(b"before" + data + b"behind"), 6, 6 + len(data))
    assert [(n, o - 6, s) for n, o, s in places(scan)] == by_tarfile(data)
    assert scan.faults == []
    assert (scan.bytes, scan.sha256) == (len(data), "")


def test_inner_tar_that_its_member_cuts_is_reported(tmp_path: Path, tar_of: TarOf) -> None:
    data = tar_of(tmp_path / "a.tar", THREE).read_bytes()
    scan = scan_headers(io.BytesIO(b"before" + data + b"behind"), 6, 6 + 2100)
    assert names(scan) == ["s0.bin", "s1.bin"]
    assert scan.faults == ["cut inside s1.bin"]


def test_name_that_is_no_utf8_survives_as_bytes() -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("\udcff.jpg"))
    [member] = scanned(data.getvalue()).members
    assert member.name.encode("utf-8", "surrogateescape") == b"\xff.jpg"


def test_unbuffered_file_that_gives_few_bytes_at_a_time_is_read_whole() -> None:
    data = with_oddities(tarfile.PAX_FORMAT)

    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 7))

    scan = scan_tar(Trickle(data))
    assert places(scan) == by_tarfile(data)
    assert scan.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("kept", "members", "faults"),
    [
        (0, [], ["cut: it has no end mark"]),
        (100, [], ["cut inside a header at byte 0"]),
        (700, ["s0.bin"], ["cut inside s0.bin"]),
        (1536, ["s0.bin"], ["cut: it has no end mark"]),
        (1536 + 511, ["s0.bin"], ["cut inside a header at byte 1536"]),
        (1536 + 512, ["s0.bin", "s1.bin"], ["cut inside s1.bin"]),
        (3072, ["s0.bin", "s1.bin"], ["cut: it has no end mark"]),
        (4608, [*THREE], ["cut: it has no end mark"]),
        (4608 + 512, [*THREE], []),  # one of the two blocks that mark the end
    ],
)
def test_cut_is_reported_wherever_it_is(
    kept: int, members: list[str], faults: list[str], tmp_path: Path, tar_of: TarOf
) -> None:
    data = tar_of(tmp_path / "a.tar", THREE).read_bytes()
    scan = scanned(data[:kept])
    assert names(scan) == members
    assert scan.faults == faults


def test_every_cut_that_loses_a_byte_of_a_file_is_reported(tmp_path: Path, tar_of: TarOf) -> None:
    data = tar_of(tmp_path / "a.tar", {"a.bin": b"a" * 700, "b.bin": b"b" * 10}).read_bytes()
    last = 512 + 1024 + 512 + 512  # header and file, twice
    assert all(scanned(data[:kept]).faults for kept in range(0, last + 1, 16))


@pytest.mark.parametrize(
    ("at", "junk", "lost", "faults"),
    [
        (1536, b"\xa5" * 512, "s1.bin", "no header at byte 1536"),
        (1536, b"\0" * 512, "s1.bin", "no header at byte 1536"),
        (1536, b"\xa5" * 1536, "s1.bin", "no header at byte 1536"),
        (1536 + 3, b"X", "s1.bin", "no header at byte 1536"),  # a letter of its name
        (1536 + 124, b"7", "s1.bin", "no header at byte 1536"),  # its size
        (0, b"\0" * 1536, "s0.bin", "no header at byte 0"),
    ],
    ids=["garbage", "zeros", "garbage member", "name", "size", "zeros first"],
)
def test_corrupt_header_is_reported_and_what_follows_is_found(
    at: int, junk: bytes, lost: str, faults: str, tmp_path: Path, tar_of: TarOf
) -> None:
    data = bytearray(tar_of(tmp_path / "a.tar", THREE).read_bytes())
    data[at : at + len(junk)] = junk
    scan = scanned(bytes(data))
    assert names(scan) == [name for name in THREE if name != lost]
    assert scan.faults == [faults]


def test_block_too_much_is_reported_and_what_follows_is_found(
    tmp_path: Path, tar_of: TarOf
) -> None:
    data = tar_of(tmp_path / "a.tar", THREE).read_bytes()
    scan = scanned(data[:1536] + b"\xa5" * 512 + data[1536:])
    assert names(scan) == [*THREE]
    assert scan.faults == ["no header at byte 1536"]


def test_two_corrupt_places_are_two_reports(tmp_path: Path, tar_of: TarOf) -> None:
    data = bytearray(tar_of(tmp_path / "a.tar", THREE).read_bytes())
    data[:512] = data[3072:3584] = b"\xa5" * 512
    scan = scanned(bytes(data))
    assert names(scan) == ["s1.bin"]
    assert scan.faults == ["no header at byte 0", "no header at byte 3072"]


@pytest.mark.parametrize(
    "data",
    [b"<!DOCTYPE html><title>404</title>" * 100, b"<html>", b"no tar at all!! " * 64],
    ids=["page", "short page", "whole blocks"],
)
def test_what_is_no_tar_is_reported(data: bytes) -> None:
    scan = scanned(data)
    assert scan.members == []
    assert scan.faults


def test_tail_of_zeros_longer_than_an_end_is_reported(tmp_path: Path, tar_of: TarOf) -> None:
    # a download whose last part never came, in a file that was made at its full size
    data = tar_of(tmp_path / "a.tar", THREE).read_bytes()
    assert scanned(data).faults == []
    scan = scanned(data[:3072] + b"\0" * 100 * 1024)
    assert names(scan) == ["s0.bin", "s1.bin"]
    assert scan.faults == ["nothing but zeros from byte 3072 on"]


def test_concatenated_tars_are_both_read(tmp_path: Path, tar_of: TarOf) -> None:
    first = tar_of(tmp_path / "a.tar", {"a.bin": b"a"}).read_bytes()
    scan = scanned(first + tar_of(tmp_path / "b.tar", {"b.bin": b"b"}).read_bytes())
    assert names(scan) == ["a.bin", "b.bin"]
    assert scan.faults == ["no header at byte 1024"]


@pytest.mark.parametrize("size", [-512, 1 << 62, 1 << 80])
def test_impossible_size_is_a_fault_not_a_hang(size: int) -> None:
    header = bytearray(tarfile.TarInfo("a.bin").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 256**11).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert tarfile.TarInfo.frombuf(bytes(header), "utf-8", "strict").size == size
    scan = scanned(bytes(header) + b"\0" * 2 * BLOCK)
    assert scan.members == []
    assert scan.faults == ["no header at byte 0"]


@pytest.mark.parametrize(
    "content", [b"", b"path=x", b"0 path=x\n", b"99 path=n.jpg\n", b"14 path=n.jpg\n", b"\xff" * 40]
)
def test_any_content_of_an_extension_is_survived(content: bytes) -> None:
    extension = tarfile.TarInfo("x")
    extension.type, extension.size = tarfile.XHDTYPE, len(content)
    block = content + b"\0" * (-len(content) % BLOCK)
    data = extension.tobuf() + block + tarfile.TarInfo("plain.jpg").tobuf() + b"\0" * 2 * BLOCK
    [name] = names(scanned(data))
    assert name == ("n.jpg" if content.startswith((b"99", b"14")) else "plain.jpg")
