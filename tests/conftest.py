"""What every test has: checked shapes, two threads, the shared photos, a store, a small disk."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# Before anything imports the package: what is imported already is not checked
install_import_hook("efficientsam_pl", "beartype.beartype")
torch.set_num_threads(2)


@pytest.fixture(scope="session")
def left() -> Callable[[list[int], float], list[int]]:
    """Which of some processes have not ended in time; one that nobody has waited for has."""

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
def shared() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("EFFICIENTSAM_SHARED", default))
    if not (folder / "data").is_dir():
        pytest.skip(f"no test photos in {folder}/data: set EFFICIENTSAM_SHARED to their parent")
    return folder


def _forget_stores() -> None:
    import s3fs

    from efficientsam_pl.data.storage import filesystems

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
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no tmpfs may be mounted here: {error}")
        mounted.append(path)
        return SmallDisk(path)

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)
