"""Files and folders that are no weights, and corrupt weights files."""

import math
import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from efficientsam_pl.cli import main as cli
from efficientsam_pl.export.consolidate import write_safetensors
from efficientsam_pl.models.weights import read_weights, safetensors_header
from efficientsam_pl.models.weights_source import WeightsError
from tests.models.weights_files import is_state, refusal, saved, state


@pytest.mark.parametrize(
    ("beginning", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><head>", "is a web page"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><Error>', "is a web page"),
        (b'{"error": "Not Found"}', "is JSON text"),
        (b"\x1f\x8b\x08\x00", "is a gzip archive; unpack it first"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"", "is empty"),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_what_is_no_weights_file_is_named(
    tmp_path: Path, beginning: bytes, message: str, suffix: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(beginning)
    assert message in refusal(path)


def test_a_folder_a_pipe_and_an_unreadable_file_are_named(tmp_path: Path) -> None:
    assert "is a folder, not a weights file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in refusal(tmp_path / "pipe")
    assert "no such file" in refusal(tmp_path / "gone.pt")


def test_a_run_a_checkpoint_and_its_files_name_the_command_that_reads_them(tmp_path: Path) -> None:
    folder = tmp_path / "run/checkpoints/step-00000001"
    (folder / "state").mkdir(parents=True)
    (folder / "complete.json").write_text("{}")
    shard = folder / "state/__0_0.distcp"
    for path in (shard, folder / "state.pt"):
        torch.save(state(), path)
    for path, named in (
        (tmp_path / "run", tmp_path / "run"),
        (folder, folder),
        (folder / "state.pt", folder),
        (shard, folder),
    ):
        assert f"`efficientsam consolidate {named} OUT.safetensors` writes" in refusal(path)


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "torch.safetensors")
    for name in ("ours.pt", "UPPER.SAFETENSORS", "none"):
        save_file(state(), tmp_path / name)
    for path in tmp_path.iterdir():
        assert is_state(read_weights(path).state), path


# zips


@pytest.mark.parametrize("first", [0x80, ord("P"), ord("<"), ord("{"), ord("\n")])
def test_a_safetensors_file_is_one_whatever_byte_its_length_begins_with(
    first: int, tmp_path: Path
) -> None:
    content = save(state())
    length = int.from_bytes(content[:8], "little")
    header, tensors = content[8 : 8 + length], content[8 + length :]
    longer = length + (first - length) % 256  # spaces may follow the JSON
    assert longer.to_bytes(8, "little")[0] == first
    path = tmp_path / "x.safetensors"
    path.write_bytes(longer.to_bytes(8, "little") + header.ljust(longer) + tensors)
    assert is_state(read_weights(str(path)).state)


def zipped(folder: Path, **entries: bytes) -> Path:
    path = folder / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_a_zip_made_on_a_mac_is_read(tmp_path: Path) -> None:
    entries = {
        "weights/": b"",
        "weights/x.pt": saved(tmp_path, {"model": state()}).read_bytes(),
        "weights/.DS_Store": b"\x00\x00\x00\x01Bud1",
        "__MACOSX/weights/._x.pt": b"\x00\x05\x16\x07",
        "weights/._x.pt": b"\x00\x05\x16\x07",
    }
    assert is_state(read_weights(zipped(tmp_path, **entries)).state)


def test_a_zip_without_weights_lists_what_it_holds(tmp_path: Path) -> None:
    path = zipped(tmp_path, **{"a.txt": b"", "model.safetensors": save(state())})
    assert "holds 0 .pt files, expected one (a.txt, model.safetensors)" in refusal(path)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path, **{"x.pt": saved(tmp_path, state()).read_bytes()})
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[6] |= 1
    content[directory + 8] |= 1  # the flag of encryption, in both headers
    path.write_bytes(content)
    assert "is corrupt" in refusal(path)


# corruption


def flipped(path: Path, offset: int) -> Path:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x40
    other = path.with_name(f"flipped{path.suffix}")
    other.write_bytes(content)
    return other


def test_a_flipped_byte_in_a_torch_file_is_noticed(tmp_path: Path) -> None:
    weight = torch.rand(50, 50)
    path = saved(tmp_path, {"a": weight})
    offset = path.read_bytes().index(weight.numpy().tobytes()) + 401
    assert "is corrupt: Bad CRC-32" in refusal(flipped(path, offset))


def test_a_torch_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path, state())
    finally:
        torch.serialization.set_crc32_options(True)
    assert is_state(read_weights(path).state)


def test_a_flipped_byte_anywhere_in_our_file_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    model, provenance = {"width": 3, "heads": 6}, {"steps": 7}
    write_safetensors(path, state(), state().values(), model, provenance)
    before, refused = read_weights(path), 0
    for offset in range(path.stat().st_size):
        try:
            after = read_weights(flipped(path, offset))
        except WeightsError:
            refused += 1
        else:  # a byte in the name of the checksum
            assert (after.config, after.provenance) == (before.config, before.provenance)
            assert is_state(after.state)
    assert refused > 0.9 * path.stat().st_size


def test_truncation_and_a_tail_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    write_safetensors(path, state(), state().values(), {}, {})
    content = path.read_bytes()
    for other in (content[:-1], content + b"\0", content[:20]):
        path.write_bytes(other)
        assert "is not a safetensors file" in refusal(path)


def test_the_order_of_tensors_in_the_file_does_not_count(tmp_path: Path) -> None:
    """As when another program saves tensors and metadata of our file unchanged."""
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    write_safetensors(first, state(), state().values(), {}, {})
    backwards = dict(reversed(state().items()))
    write_safetensors(second, backwards, backwards.values(), {}, {})
    assert first.read_bytes() != second.read_bytes()
    assert is_state(read_weights(second).state)


def test_our_files_without_a_checksum_are_read(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "x.safetensors", safetensors_header({}, {}))
    assert is_state(read_weights(tmp_path / "x.safetensors").state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_no_number_are_refused(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    tensors = {"good": torch.ones(3, dtype=dtype), "bad": torch.ones(5, dtype=dtype)}
    tensors["bad"][3] = value
    kind = "NaN" if math.isnan(value) else "infinite"
    message = refusal(saved(tmp_path, tensors))
    assert message.endswith(f"holds {kind} weights in bad")
    write_safetensors(tmp_path / "x.safetensors", tensors, tensors.values(), {}, {})
    assert f"holds {kind} weights in bad" in refusal(tmp_path / "x.safetensors")


def test_a_wrong_file_is_exit_code_2_before_torch_is_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pointer = tmp_path / "x.pt"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    image, out = ("--image", str(pointer)), ("--out", str(tmp_path / "o"))
    for arguments in (
        ("predict", "--weights", str(pointer), *image, *out, "--box", "0,0,1,1"),
        ("evaluate", f"model.weights={pointer}", "shards=x", f"out={tmp_path}/o.json"),
        ("pretrain", f"teacher.weights={pointer}", "data.train=x", f"run.dir={tmp_path}/r"),
        ("finetune", f"model.encoder={pointer}", "data.train=x", f"run.dir={tmp_path}/r"),
        ("quickstart", "--teacher", str(pointer), *out),
        ("figure", "--spec", "s", "--model", f"A={pointer}", "--out", str(tmp_path / "f.png")),
    ):
        assert cli.main(arguments) == 2, arguments
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert f"{pointer} is a Git LFS pointer" in line
