"""An OpenAI-compatible server on this machine's own network that misbehaves as it is told to.

What it writes is decided by the request alone, so that two runs that ask the same get the same.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: What a request can meet; the rest of the protocol is kept.
FAULTS = {
    "500": (500, {}, b'{"error": {"message": "out of luck"}}'),
    "503": (503, {}, b"<html>busy</html>"),
    "429": (429, {"Retry-After": "7"}, b'{"error": "slow down"}'),
    "not JSON": (200, {}, b"<html>hello</html>"),
    "half of the JSON": (200, {}, b'{"choices": [{"text": "ab'),
    "no object": (200, {}, b"[1, 2]"),
    "no choices": (200, {}, b'{"choices": []}'),
    "no text": (200, {}, b'{"choices": [{"finish_reason": "stop", "message": {"content": 3}, "text": 3}]}'),
    "no message": (200, {}, b'{"choices": [{"finish_reason": "stop", "message": null}]}'),
    "no finish": (
        200,
        {},
        b'{"choices": [{"finish_reason": null, "message": {"content": "a"}, "text": "a"}]}',
    ),
    "half a surrogate": (
        200,
        {},
        b'{"choices": [{"finish_reason": "stop", "message": {"content": "\\ud800"}, "text": "\\ud800"}]}',
    ),
    "not gzip": (200, {"Content-Encoding": "gzip"}, b"{}"),
    "400": (400, {}, b'{"object": "error", "message": "max_tokens is too large"}'),
    "401": (401, {}, b'{"error": {"message": "who are you?"}}'),
    "404": (404, {}, b'{"detail": "Not Found"}'),
}
#: Those that end in the connection, not in an answer.
BROKEN = ("hang", "drip", "cut", "closed", "reset")
#: What is worth another try.
PASSING = [name for name in (*FAULTS, *BROKEN) if name not in ("400", "401", "404")]


class Misbehaving:
    """The server's address, what it was asked, and what it does about it.

    ``fault`` decides by a request's body and how often the same came before.
    """

    def __init__(self, address: str) -> None:
        self.url = f"{address}/v1"
        self.fault: Callable[[dict[str, Any], int], str | None] = lambda body, before: None
        self.reply: Callable[[dict[str, Any]], dict[str, Any]] = answer
        self.models = ["tiny"]
        self.models_fault: str | None = None
        self.version: str | None = "0.9"
        self.keys: list[str | None] = []
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = 0
        self.arrived = threading.Condition()
        self.released = threading.Event()
        self._at_once = 0
        self._seen: Counter[str] = Counter()

    def enter(self, body: dict[str, Any]) -> str | None:
        with self.arrived:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            key = json.dumps(body)
            before = self._seen[key]
            self._seen[key] += 1
            self.bodies.append(body)
            self.arrived.notify_all()
        try:
            return self.fault(body, before)
        finally:
            with self.arrived:
                self._at_once -= 1

    def wait_for(self, count: int, is_over: Callable[[], bool] = lambda: False) -> None:
        """Until so many requests have come, or it is over."""
        with self.arrived:
            while len(self.bodies) < count and not is_over():
                self.arrived.wait(0.05)


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """A choice that tells what it was asked: how many messages, the last one, the seed."""
    if "prompt" in body:
        text = f"…{len(body['prompt'])} ({body['seed']})"
        return {"text": text, "finish_reason": "length" if body["seed"] % 3 == 0 else "stop"}
    text = f"{len(body['messages'])}: {body['messages'][-1]['content']} ({body['seed']})"
    return {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10  # of a connection that nobody closes
    server: Any

    def do_GET(self) -> None:
        told: Misbehaving = self.server.told
        told.keys.append(self.headers.get("Authorization"))
        if self.path == "/v1/models":
            if told.models_fault is not None:
                return self._send(*FAULTS[told.models_fault])
            return self._json({"object": "list", "data": [{"id": name} for name in told.models]})
        if self.path == "/version" and told.version is not None:
            return self._json({"version": told.version})
        return self._send(*FAULTS["404"])

    def do_POST(self) -> None:
        told: Misbehaving = self.server.told
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = told.enter(body)
        try:
            assert self.path == ("/v1/completions" if "prompt" in body else "/v1/chat/completions")
            if fault in FAULTS:
                self._send(*FAULTS[fault])
            elif fault is not None:
                self._break(fault, told)
            else:
                self._json({"choices": [told.reply(body)], "usage": {"completion_tokens": 5}})
        except OSError:  # who asked has gone
            self.close_connection = True

    def _break(self, fault: str, told: Misbehaving) -> None:
        self.close_connection = True
        if fault in ("cut", "drip"):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b'{"choices":')
            self.wfile.flush()
        while fault == "drip" and not told.released.wait(0.02):
            self.wfile.write(b" ")  # always something new, never an end
        if fault == "hang":
            told.released.wait()
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _json(self, value: Any) -> None:
        self._send(200, {}, json.dumps(value).encode())

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 128
    told: Misbehaving

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is what was wanted."""


@contextmanager
def misbehaving() -> Iterator[Misbehaving]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.told = Misbehaving(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.told
        finally:
            server.told.released.set()
            server.shutdown()
            thread.join()
