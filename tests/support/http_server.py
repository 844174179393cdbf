"""An http server on loopback with every fault a server can have."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from ripple.rubin.remote import Policy

BODY = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()


CANARY = "gt-canary-3f1c9a77"


QUICK = Policy(backoff=0.01, longest_wait=2.0, connect=2.0, idle=0.4, deadline=5.0)


class Handler(BaseHTTPRequestHandler):
    """Serves BODY; `server.script` holds what to do with the next requests, then all is well."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        action, argument = self.server.script.pop(0) if self.server.script else ("fine", None)
        getattr(self, action)(argument)

    def fine(self, _: object, *, extra: dict[str, str] | None = None) -> None:
        wanted = re.match(r"bytes=(\d+)-(\d+)$", self.headers.get("Range", ""))
        body, status = BODY, 200
        if wanted:
            start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(BODY))
            if start >= len(BODY):
                self.status((416, {}))
                return
            body, status = BODY[start:stop], 206
        self.send_response(status)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(BODY)}")
        self.send_header("Content-Length", str(len(body)))
        for key, value in ({"ETag": '"one"'} | (extra or {})).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def status(self, answer: tuple[int, dict[str, str]]) -> None:
        code, headers = answer
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def redirect(self, url: str) -> None:
        self.status((302, {"Location": url}))

    def cut(self, at: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:at])
        self.close_connection = True

    def announce(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(BODY[: max(0, length)])
        self.close_connection = True

    def silent(self, seconds: float) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:1000])
        time.sleep(seconds)
        self.close_connection = True

    def hang_up(self, _: object) -> None:
        self.close_connection = True

    def page(self, _: object) -> None:
        body = b"<html>Sign in</html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def other_version(self, _: object) -> None:
        self.fine(None, extra={"ETag": '"two"'})

    def whole(self, _: object) -> None:
        del self.headers["Range"]
        self.fine(None)

    def wrong_range(self, shift: int) -> None:
        body = BODY[:100]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {shift}-{shift + 99}/{len(BODY)}")
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[tuple[str, object]] = []
        self.seen: list[tuple[str, dict[str, str]]] = []

    def url(self, path: str = "/patch.fits") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def tokens(self) -> list[str]:
        return [value for _, headers in self.seen for value in headers.values() if CANARY in value]


def serve() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
