"""Fixtures of every test: checked shapes, two threads, the shared photos, a store, a small disk.

And the golden numbers, models filled by their weight rule, and models small enough to loop over.
"""

import io
import json
import math
import os
import shutil
import subprocess
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning  # noqa: F401  with timm: what is imported below the hook is compiled again
import numpy as np
import pytest
import timm  # noqa: F401
import torch
from jaxtyping import install_import_hook
from PIL import Image
from torch import Tensor

from tests.storage.faulty_server import Web

if TYPE_CHECKING:
    from efficientsam_pl.models.config import SegmenterConfig
    from efficientsam_pl.models.segmenter import Segmenter

# Before anything imports the package: what is imported already is not checked
install_import_hook("efficientsam_pl", "beartype.beartype")
# As many tests as cores run at once, and threads that wait for each other spin
torch.set_num_threads(1)

LEFT_OUT = {
    "slurm": "make test-slurm",
    "slow": "make test-all",
    "shared": "make test-all, where their photos are",
}
_deselected = pytest.StashKey[Counter[str]]()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a file that share a fixture run in one process, all others where there is room."""
    from xdist.scheduler import LoadScopeScheduling

    class BySharedFixtures(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", maxsplit=1)[0]
            return file if 'scope="module"' in _source(config.rootpath / file) else nodeid

    return BySharedFixtures(config, log)


@cache
def _source(path: Path) -> str:
    return path.read_text()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("shared")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_deselected] = Counter()


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        if reason := next(filter(item.get_closest_marker, LEFT_OUT), None):
            item.config.stash[_deselected][reason] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    if output := getattr(session.config, "workeroutput", None):  # every worker has collected all
        output["deselected"] = dict(session.config.stash[_deselected])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    counts = getattr(node, "workeroutput", {}).get("deselected", {})
    node.config.stash[_deselected] = Counter(counts) or node.config.stash[_deselected]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    counts = config.stash[_deselected]
    lines = [f"{counts[mark]} {mark} ({why})" for mark, why in LEFT_OUT.items() if counts[mark]]
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    lines += [f"{count} skipped ({reason})" for reason, count in reasons.most_common()]
    if lines:
        terminalreporter.write_line("left out: " + "; ".join(lines))


@pytest.fixture(scope="session")
def left() -> Callable[[list[int], float], list[int]]:
    """List processes that have not ended in time; one that nobody has waited for has."""

    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def found(pids: list[int], within_s: float) -> list[int]:
        until = time.monotonic() + within_s
        while (living := list(filter(runs, pids))) and time.monotonic() < until:
            time.sleep(0.05)
        return living

    return found


@pytest.fixture(scope="session")
def tar_of() -> Callable[[Path, Mapping[str, bytes]], Path]:
    """Writes files into a tar with the standard library."""

    def write(path: Path, files: Mapping[str, bytes]) -> Path:
        with tarfile.open(path, "w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return path

    return write


@pytest.fixture(scope="session")
def shared() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("EFFICIENTSAM_SHARED", default))
    if not (folder / "data").is_dir():
        pytest.skip(f"no test photos in {folder}/data: set EFFICIENTSAM_SHARED to their parent")
    return folder


def _forget_stores() -> None:
    import s3fs

    from efficientsam_pl.storage import filesystems

    s3fs.S3FileSystem.clear_instance_cache()
    filesystems._store_of_process.cache_clear()


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    """An S3 server on this machine; s3:// leads to it. It has no buckets yet."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        _forget_stores()
        yield
        server.stop()
    _forget_stores()


@dataclass(frozen=True)
class SmallDisk:
    """A disk of a few hundred kilobytes, mounted at `path`."""

    path: Path

    def fill(self, leave: int = 0) -> None:
        """Leaves so many bytes, rounded down to its blocks of 4 KiB."""
        free = shutil.disk_usage(self.path).free
        self._ballast.write_bytes(bytes(free - leave))

    def empty(self) -> None:
        """Makes room again."""
        self._ballast.unlink()

    @property
    def _ballast(self) -> Path:
        return self.path / ".ballast"


MountDisk = Callable[..., SmallDisk]


@pytest.fixture
def mount_disk(tmp_path: Path) -> Iterator[MountDisk]:
    """Mounts small disks: mount_disk(kibibytes=1024, options="rw"); skips where it may not."""
    mounted: list[Path] = []

    def mount(kibibytes: int = 1024, options: str = "rw") -> SmallDisk:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k,{options}", "tmpfs"]
        try:
            subprocess.run([*command, str(path)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no disk may be mounted here, which root may")
        mounted.append(path)
        return SmallDisk(path)

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


_AS_DRAWN = {
    "iou_token",
    "mask_tokens",
    "invalid_points",
    "point_embeddings",
    "bbox_top_left_embeddings",
    "bbox_bottom_right_embeddings",
    "not_a_point_embed",
    "no_mask_embed",
    "pos_embed",
    "positional_encoding_gaussian_matrix",
}


def weight_by_rule(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that golden/README.md gives a released name."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    parts = set(name.split("."))
    if parts & _AS_DRAWN:
        pass
    elif parts & {"rel_pos_h", "rel_pos_w"}:
        values = 0.1 * values
    elif len(shape) >= 2:
        values = values / math.sqrt(math.prod(shape[1:]))
    elif name.endswith("weight"):
        values = 1 + 0.1 * values
    else:
        values = 0.1 * values
    return torch.from_numpy(values.astype(np.float32))


def sam_small_shapes(sam_vit_b: dict[str, list[int]]) -> dict[str, list[int]]:
    """Names and shapes of the small golden SAM: ViT-B's with another encoder."""
    width, grid, head = 96, 64, 32
    block = {
        "norm1.weight": [width],
        "norm1.bias": [width],
        "attn.qkv.weight": [3 * width, width],
        "attn.qkv.bias": [3 * width],
        "attn.proj.weight": [width, width],
        "attn.proj.bias": [width],
        "norm2.weight": [width],
        "norm2.bias": [width],
        "mlp.lin1.weight": [4 * width, width],
        "mlp.lin1.bias": [4 * width],
        "mlp.lin2.weight": [width, 4 * width],
        "mlp.lin2.bias": [width],
    }
    neck = {k: s for k, s in sam_vit_b.items() if k.startswith("image_encoder.neck.")}
    shapes = {k: s for k, s in sam_vit_b.items() if not k.startswith("image_encoder.")}
    shapes |= neck | {
        "image_encoder.neck.0.weight": [256, width, 1, 1],
        "image_encoder.pos_embed": [1, grid, grid, width],
        "image_encoder.patch_embed.proj.weight": [width, 3, 16, 16],
        "image_encoder.patch_embed.proj.bias": [width],
    }
    for i, window in enumerate((14, grid, 14, grid)):
        shapes |= {f"image_encoder.blocks.{i}.{k}": s for k, s in block.items()}
        for axis in "hw":
            shapes[f"image_encoder.blocks.{i}.attn.rel_pos_{axis}"] = [2 * window - 1, head]
    return shapes


@pytest.fixture(scope="session")
def tagged() -> Callable[..., bytes]:
    """Encode an upright image as a camera does: pixels turned, and the orientation in EXIF."""
    turn = Image.Transpose
    to_stored = {
        2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
        6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270,
    }  # fmt: skip

    def encode(upright: np.ndarray, orientation: int, form: str = "JPEG", **more: object) -> bytes:
        image, exif = Image.fromarray(upright), Image.Exif()
        exif[0x0112], exif[0x010F] = orientation, "a camera"
        stored = image if orientation == 1 else image.transpose(to_stored[orientation])
        lossless = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
        data = io.BytesIO()
        stored.save(data, form, exif=exif, **lossless.get(form, {}) | more)
        return data.getvalue()

    return encode


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    return shared / "golden"


@pytest.fixture(scope="session")
def dogs(shared: Path) -> np.ndarray:
    return np.array(Image.open(shared / "photos" / "dogs.jpg").convert("RGB"))


@pytest.fixture(scope="session")
def released_shapes(golden: Path) -> Callable[[str], dict[str, list[int]]]:
    """Names and shapes of a released checkpoint, by the model's name."""
    return lambda name: json.loads((golden / f"{name}.keys.json").read_text())


@pytest.fixture(scope="session")
def released_ti(
    released_shapes: Callable[[str], dict[str, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """EfficientSAM-Ti as it is released, a file with the state under "model"."""
    path = tmp_path_factory.mktemp("released") / "efficient_sam_vitt.pt"
    shapes = released_shapes("efficient_sam_ti")
    torch.save({"model": {k: weight_by_rule(k, tuple(s)) for k, s in shapes.items()}}, path)
    return path


@pytest.fixture(scope="session")
def released_sam_small(
    released_shapes: Callable[[str], dict[str, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The small golden SAM in the form of a released SAM file."""
    path = tmp_path_factory.mktemp("released") / "sam_small.pth"
    shapes = sam_small_shapes(released_shapes("sam_vit_b"))
    torch.save({k: weight_by_rule(k, tuple(s)) for k, s in shapes.items()}, path)
    return path


def load_file(config: "SegmenterConfig", path: Path) -> "Segmenter":
    """A segmenter with the weights of a file, as the program loads it."""
    from efficientsam_pl.models.segmenter import Segmenter
    from efficientsam_pl.models.weights import load_strictly, read_weights

    model = Segmenter(config).eval()
    load_strictly(model, read_weights(str(path)).state, str(path))
    return model


@pytest.fixture(scope="session")
def ti(released_ti: Path) -> "Segmenter":
    from efficientsam_pl.models.config import NAMED

    return load_file(NAMED["efficient_sam_ti"], released_ti)


@pytest.fixture(scope="session")
def sam_small(released_sam_small: Path) -> "Segmenter":
    from efficientsam_pl.models.config import NAMED

    huge = NAMED["sam_vit_h"]
    small = replace(huge.encoder, width=96, depth=4, heads=3, global_blocks=(1, 3))
    return load_file(replace(huge, encoder=small), released_sam_small)


def _tiny(name: str) -> "Segmenter":
    """A released layout in small: 64 pixels a side, 32 channels; random, the same every time."""
    from efficientsam_pl.models.config import NAMED, EncoderConfig
    from efficientsam_pl.models.segmenter import Segmenter

    named = NAMED[name]
    encoder = EncoderConfig(
        kind=named.encoder.kind,
        width=32,
        depth=2,
        heads=2,
        image_size=64,
        position_grid=4,
        neck_channels=32,
        window=3,
        global_blocks=(1,),
    )
    config = replace(named, encoder=encoder, decoder=replace(named.decoder, mlp_width=64))
    torch.manual_seed(0)
    model = Segmenter(config).eval()
    for parameter in model.parameters():  # zeros and ones would hide what is left out
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=["efficient_sam_ti", "sam_vit_b"])
def tiny(request: pytest.FixtureRequest) -> "Segmenter":
    return _tiny(request.param)


@pytest.fixture
def tiny_efficient_sam() -> "Segmenter":
    return _tiny("efficient_sam_ti")


@pytest.fixture
def tiny_sam() -> "Segmenter":
    return _tiny("sam_vit_b")


@pytest.fixture
def web() -> Iterator[Callable[..., Web]]:
    """Serves a folder on this machine until the test ends."""
    served: list[Web] = []

    def serve(folder: Path, ranges: bool = True) -> Web:
        served.append(Web(folder, ranges))
        return served[-1]

    yield serve
    for server in served:
        server.stop()
