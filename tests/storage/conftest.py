"""A local web server that can fail on request."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class Web:
    """A folder served on this machine, by a server that can be made to fail."""

    def __init__(self, folder: Path, ranges: bool = True) -> None:
        self.folder, self.ranges = folder, ranges
        self.failing = 0  # so many of the next requests for a file's bytes get status 503
        self.cutting = 0  # and so many break off in the middle
        self.requests: list[tuple[str, str]] = []  # file and range of each request for bytes
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                web._respond(self, body=False)

            def do_GET(self) -> None:
                web._respond(self, body=True)

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

    def _respond(self, request: BaseHTTPRequestHandler, body: bool) -> None:
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
    for server in served:
        server.stop()
