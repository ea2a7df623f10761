"""A real HTTP server in a thread: whole files or the ranges asked for, and, on request, broken connections."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """What a server holds and how it behaves; it may be changed while it runs.

    Attributes:
        files: path from "/" on -> bytes.
        ranges: whether it gives parts of a file; it says so.
        cut: bytes of a body after which the connection breaks; None for never.
        refusal: a status that every request gets instead.
        sent: bytes of bodies that went out.
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    cut: int | None = None
    refusal: int | None = None
    sent: int = 0


@contextmanager
def http_files() -> Iterator[Served]:
    """A server on this machine, for as long as the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    served = Served(f"http://127.0.0.1:{server.server_address[1]}")
    server.RequestHandlerClass = type("Handler", (_Handler,), {"served": served})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: Served

    def do_HEAD(self) -> None:
        self._begin()

    def do_GET(self) -> None:
        body = self._begin()
        body = body if self.served.cut is None else body[: self.served.cut]
        self.served.sent += len(body)
        self.wfile.write(body)  # the connection ends with the answer (HTTP/1.0), whatever length was promised

    def log_message(self, *_: object) -> None:
        pass

    def _begin(self) -> bytes:
        """Status and headers; gives the body that they promise."""
        data = self.served.files.get(self.path)
        if data is None or self.served.refusal:
            self.send_response(self.served.refusal or 404)
            self.end_headers()
            return b""
        asked = self.headers.get("Range") if self.served.ranges else None
        body = data
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            end = min(int(last or len(data) - 1), len(data) - 1)
            body = data[int(first) : end + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{end}/{len(data)}")
        else:
            self.send_response(200)
        if self.served.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return body
