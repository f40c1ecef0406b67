"""A web server on this machine that fails on request, as stores out there do."""

import struct
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from urllib.parse import unquote

LOGIN = b"<!doctype html><title>Sign in</title>" + b" " * 1000
DENIED = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


class Web:
    """A folder served on this machine, by a server that can be made to fail."""

    def __init__(self, folder: Path, ranges: bool = True) -> None:
        self.folder, self.ranges = folder, ranges
        self.failing = 0  # so many of the next requests for a file's bytes get this status
        self.status, self.headers = 503, dict[str, str]()
        self.away_after: int | None = None  # so many requests for bytes succeed, then none
        self.cutting = 0  # and so many break off in the middle
        self.resetting = 0  # or are reset before a response
        self.shortening = 0  # or get half of a range, as if it were all of it
        self.failing_heads = 0  # and so many of the next requests of any kind
        self.denied: tuple[int, bytes] | None = None  # status and body of all responses
        self.denied_names: tuple[str, ...] = ()  # ends of the names that get status 403
        self.login = False  # every file is a page
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
        path = self.folder / unquote(request.path.partition("?")[0]).strip("/")
        if self.failing_heads:
            self.failing_heads -= 1
            self._send(request, self.status, b"", body)
        elif self.denied_names and path.name.endswith(self.denied_names):
            self._send(request, 403, DENIED, body)
        elif self.denied is not None:
            self.requests.append((path.name, ""))
            self._send(request, *self.denied, body)
        elif self.login:
            self.requests.append((path.name, ""))
            self._send(request, 200, LOGIN, body, {"Content-Type": "text/html; charset=utf-8"})
        elif path.is_dir():
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
            if self.away_after is not None and len(self.requests) > self.away_after:
                self._send(request, 503, b"", body)
                return
            if self.failing:
                self.failing -= 1
                self._send(request, self.status, b"", body, self.headers)
                return
            if self.resetting:
                self.resetting -= 1
                request.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                request.connection.close()
                request.close_connection = True
                return
        if not (self.ranges and wanted):
            self._send(request, 200, data, body)
            return
        first, last = wanted.removeprefix("bytes=").split("-")
        part = data[int(first) : int(last or len(data)) + 1]
        if body and self.shortening:
            self.shortening -= 1
            part = part[: len(part) // 2]
        self._send(request, 206 if part else 416, part, body)

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        data: bytes,
        body: bool,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        request.send_response(status)
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if body and self.cutting and status in (200, 206):
            self.cutting -= 1
            data = data[: len(data) // 2]
        if body:
            request.wfile.write(data)
