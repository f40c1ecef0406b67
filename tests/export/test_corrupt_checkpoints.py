"""A corrupt checkpoint, and an output of another kind, are refused before anything is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter, save

from efficientsam_pl.checkpoints.layout import file_records, step_folder, write_manifest
from efficientsam_pl.cli import main as cli
from efficientsam_pl.export.consolidate import consolidate
from efficientsam_pl.models.weights import FORMAT, read_weights

WEIGHT = torch.rand(30, 20)
HEADER = {
    "stage": "finetune",
    "model": {"encoder": {"width": 20}},
    "losses": {},
    "data": {},
    "config": {},
    "versions": {},
}


def written(run: Path, kind: str, step: int = 3) -> Path:
    """A checkpoint with one weight, as a run has it."""
    folder = step_folder(run / "checkpoints", step)
    folder.mkdir(parents=True)
    tensors = {"model.a": WEIGHT, "optimizer.a.exp_avg": torch.rand(30, 20)}
    torch.save({FORMAT: HEADER, "global_step": step}, folder / "run.pt")
    if kind == "plain":
        torch.save(tensors, folder / "state.pt")
    else:
        with pytest.warns(UserWarning, match="single process"):
            save(tensors, storage_writer=FileSystemWriter(folder / "state"), no_dist=True)
    files = [path for path in folder.rglob("*") if path.is_file()]
    write_manifest(
        folder,
        "plain" if kind == "plain" else "sharded",
        step,
        "run.pt",
        file_records(files, folder),
    )
    return folder


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x40
    path.write_bytes(content)


def refused(capsys: pytest.CaptureFixture[str], folder: Path, out: Path) -> str:
    """The single line of the refusal, after which there is no output."""
    assert cli.main(["consolidate", str(folder), str(out)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert not out.exists()
    return line


@pytest.mark.parametrize("kind", ["plain", "sharded"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_flipped_byte_in_any_file_is_named(
    tmp_path: Path, kind: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path, kind)
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "complete.json"]
    assert len(files) == (2 if kind == "plain" else 3)
    for path in files:
        for offset in (0, path.stat().st_size // 2, path.stat().st_size - 1):
            flip(path, offset)
            line = refused(capsys, folder, tmp_path / f"x.{suffix}")
            name = path.relative_to(folder).as_posix()
            assert f"{folder} is corrupt: {name} has a wrong checksum" in line
            flip(path, offset)
    out = tmp_path / "x.safetensors"
    consolidate(folder, out)
    assert torch.equal(read_weights(out).state["a"], WEIGHT)


@pytest.mark.parametrize("kind", ["plain", "sharded"])
def test_a_flipped_byte_in_the_manifest_is_noticed_or_harmless(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = written(tmp_path, kind), tmp_path / "x.safetensors"
    manifest = folder / "complete.json"
    consolidate(folder, out)
    expected, accepted = out.read_bytes(), 0
    for offset in range(0, manifest.stat().st_size, 9):
        out.unlink(missing_ok=True)
        flip(manifest, offset)
        if cli.main(["consolidate", str(folder), str(out)]) == 0:
            accepted += 1
            assert out.read_bytes() == expected
        capsys.readouterr()
        flip(manifest, offset)
    assert accepted < 5  # only where a digit of the time of writing changes


def test_a_missing_and_a_cut_file_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = written(tmp_path, "plain"), tmp_path / "x.safetensors"
    content = (folder / "state.pt").read_bytes()
    (folder / "state.pt").write_bytes(content[:-1])
    assert f"state.pt has {len(content) - 1} bytes instead of" in refused(capsys, folder, out)
    (folder / "state.pt").unlink()
    assert "state.pt is missing" in refused(capsys, folder, out)


def test_an_unknown_kind_of_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path, "plain")
    manifest = json.loads((folder / "complete.json").read_text()) | {"kind": "plaim"}
    (folder / "complete.json").write_text(json.dumps(manifest))
    line = refused(capsys, folder, tmp_path / "x.safetensors")
    assert "complete.json cannot be read: unknown kind of checkpoint 'plaim'" in line


NAMES = {
    "x.pth": "PyTorch's form has the suffix .pt here",
    "x.bin": "PyTorch's form has the suffix .pt here",
    "x.ckpt": "PyTorch's form has the suffix .pt here",
    "x.onnx": "it does not write ONNX",
    "x": "not x",
    "x.pt.gz": "not x.pt.gz",
}


@pytest.mark.parametrize(("name", "hint"), NAMES.items())
def test_another_suffix_is_refused(
    tmp_path: Path, name: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, written(tmp_path, "plain"), tmp_path / name)
    assert "consolidate writes .safetensors and .pt files, not " in line
    assert hint in line


def test_a_suffix_in_upper_case_is_read_as_it_is_meant(tmp_path: Path) -> None:
    out = tmp_path / "X.SAFETENSORS"
    assert cli.main(["consolidate", str(written(tmp_path, "plain")), str(out)]) == 0
    assert torch.equal(read_weights(out).state["a"], WEIGHT)


def test_a_suffix_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys; from efficientsam_pl.cli import main as cli; "
        f"assert cli.main(['consolidate', {str(tmp_path)!r}, 'x.onnx']) == 2; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
