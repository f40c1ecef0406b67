"""Shards written with the standard library alone: photos of noise with rectangles as masks."""

import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

Files = Mapping[str, bytes]


def write_tar(path: Path, files: Files) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def jpeg(image: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=95, subsampling=0)
    return data.getvalue()


def photo(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def sa1b_json(masks: Sequence[np.ndarray], height: int = 40, width: int = 60) -> bytes:
    annotations: list[dict[str, Any]] = []
    for index, mask in enumerate(masks):
        runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        annotations.append(
            {
                "id": index,
                "segmentation": {"size": [height, width], "counts": runs["counts"].decode()},
                "area": int(mask.sum()),
                "bbox": [0, 0, 1, 1],
                "predicted_iou": 0.9,
            }
        )
    image = {"image_id": 1, "width": width, "height": height, "file_name": "sa_1.jpg"}
    return json.dumps({"image": image, "annotations": annotations}).encode()


def rectangle(top: int, left: int, bottom: int, right: int, hw: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(hw, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture(scope="session")
def tar_of() -> Callable[[Path, Files], Path]:
    return write_tar


@pytest.fixture(scope="session")
def jpeg_of() -> Callable[[np.ndarray], bytes]:
    return jpeg


@pytest.fixture(scope="session")
def json_of() -> Callable[..., bytes]:
    return sa1b_json


@pytest.fixture(scope="session")
def noise() -> Callable[..., np.ndarray]:
    return photo


@pytest.fixture(scope="session")
def good_sample() -> dict[str, bytes]:
    """The files of one sample by ending: 40 x 60 pixels, two masks."""
    masks = [rectangle(5, 10, 25, 40, (40, 60)), rectangle(30, 50, 31, 51, (40, 60))]
    return {"jpg": jpeg(photo(0)), "json": sa1b_json(masks)}


class Web:
    """A folder served on this machine, by a server that can be told to fail."""

    def __init__(self, folder: Path, ranges: bool = True) -> None:
        self.folder, self.ranges = folder, ranges
        self.failing = 0  # so many of the next requests for a file's bytes are answered with 503
        self.cutting = 0  # and so many break off in the middle
        self.requests: list[tuple[str, str]] = []  # file and range of each request for bytes
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                web._answer(self, body=False)

            def do_GET(self) -> None:
                web._answer(self, body=True)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        path = self.folder / request.path.strip("/")
        if path.is_dir():
            links = [f'<a href="{p.name}">{p.name}</a>' for p in sorted(path.iterdir())]
            self._send(request, 200, "".join(links).encode(), body)
        elif not path.is_file():
            self._send(request, 404, b"", body)
        else:
            self._send_file(request, path, body)

    def _send_file(self, request: BaseHTTPRequestHandler, path: Path, body: bool) -> None:
        data, wanted = path.read_bytes(), request.headers.get("Range", "")
        if body:
            self.requests.append((path.name, wanted))
            if self.failing:
                self.failing -= 1
                self._send(request, 503, b"", body)
                return
        if not (self.ranges and wanted):
            self._send(request, 200, data, body)
            return
        first, last = wanted.removeprefix("bytes=").split("-")
        part = data[int(first) : int(last or len(data)) + 1]
        self._send(request, 206 if part else 416, part, body)

    def _send(self, request: BaseHTTPRequestHandler, status: int, data: bytes, body: bool) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if body and self.cutting and status in (200, 206):
            self.cutting -= 1
            data = data[: len(data) // 2]
        if body:
            request.wfile.write(data)


@pytest.fixture
def web() -> Iterator[Callable[..., Web]]:
    """Serves a folder on this machine until the test ends."""
    served: list[Web] = []

    def serve(folder: Path, ranges: bool = True) -> Web:
        served.append(Web(folder, ranges))
        return served[-1]

    yield serve
    for one in served:
        one.stop()
