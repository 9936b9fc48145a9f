"""A server of data files on this machine, which answers as tests ask, and damage to what it serves."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Reply = bytes | Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A mirror on this machine: `replies` maps paths to bodies, or to functions that answer by themselves."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                reply = server.replies.get(self.path)
                if callable(reply):
                    reply(self)
                elif reply is None:
                    self.send_error(404)
                else:
                    send(self, reply)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def mirrors(self, filename: str, *bodies: Reply | None) -> tuple[str, ...]:
        """One mirror per body, each of which answers a request for the file with that body (None: 404)."""
        for k, body in enumerate(bodies):
            if body is not None:
                self.replies[f"/{k}/{filename}"] = body
        return tuple(f"{self.base}/{k}/" for k in range(len(bodies)))


def send(handler: BaseHTTPRequestHandler, body: bytes, promised: int | None = None) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body) if promised is None else promised))
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def running_server() -> Iterator[Server]:
    """A server that is closed at the end."""
    server = Server()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()


def silent(handler: BaseHTTPRequestHandler) -> None:
    threading.Event().wait(1.0)


def flipped(whole: bytes, bit: int) -> bytes:
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]
