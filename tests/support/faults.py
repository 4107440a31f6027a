"""A proxy between a client and an object store that fails on purpose, request by request."""

from __future__ import annotations

import contextlib
import datetime as dt
import email.utils
import hashlib
import socket
import socketserver
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal[
    "reset",  # the connection, before the request is passed on
    "reset-midway",  # within the body of the request
    "lose-answer",  # the request is carried out, and its answer never comes
    "stall",  # no answer, for ever
    "cut-answer",  # half of the body of the answer, then the end
    "status",  # an answer that is not the store's
    "forget",  # the answer to what succeeded, and nothing is done
    "corrupt",  # another byte than was sent
    "skew",  # a store whose clock is two hours ahead
]
_PIECE_BYTES = 1 << 16
_SKEW = dt.timedelta(hours=2)


@dataclass
class Fault:
    """What is done to the next `times` requests whose first line has all of `words`."""

    kind: Kind
    words: tuple[str, ...]
    times: int
    status: int = 0
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class _Request:
    """One request as it came, its body still to be read."""

    def __init__(self, reader: socket.SocketIO, head: bytes) -> None:
        self.line, *lines = head.decode("latin-1").split("\r\n")
        self.headers = [line for line in lines if not line.lower().startswith("expect:")]
        values = dict(line.lower().split(": ", 1) for line in lines)
        self.left = int(values.get("content-length", "0"))
        self.expects = "expect" in values
        self.reader = reader

    @property
    def method(self) -> str:
        return self.line.split(" ")[0]

    def head(self) -> bytes:
        kept = [one for one in self.headers if not one.lower().startswith("connection:")]
        return "\r\n".join([self.line, *kept, "Connection: close", "", ""]).encode("latin-1")

    def pieces(self) -> Iterator[bytes]:
        while self.left and (data := self.reader.read(min(_PIECE_BYTES, self.left))):
            self.left -= len(data)
            yield data


class FaultProxy:
    """Passes everything on to `upstream` (host:port), but what `fail` was told."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._clients: set[socket.socket] = set()
        self.lines: list[str] = []
        """The first line of every request."""
        self.endpoint_url = ""
        self.sent_bytes = 0
        """Of the bodies of requests that were passed on."""
        self.answered_bytes = 0
        """Of answers of the store, their heads included."""

    def fail(
        self,
        kind: Kind,
        *words: str,
        times: int = 1,
        status: int = 0,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Do this to the next requests with these words in their first line."""
        with self._lock:
            self._faults.append(Fault(kind, words, times, status, body, headers or {}))

    def heal(self) -> None:
        """Fail no more."""
        with self._lock:
            self._faults.clear()

    def fail_with(
        self, status: int, code: str, *words: str, times: int = 1, message: str = ""
    ) -> None:
        """Answer with an error as S3 writes it."""
        self.fail("status", *words, times=times, status=status, body=error_body(code, message))

    def count(self, *words: str) -> int:
        """Requests so far with these words in their first line."""
        return sum(all(word in line for word in words) for line in self.lines)

    def _fault_for(self, line: str) -> Fault | None:
        with self._lock:
            self.lines.append(line)
            for fault in self._faults:
                if fault.times and all(word in line for word in fault.words):
                    fault.times -= 1
                    return fault
        return None

    def serve(self, client: socket.socket) -> None:
        """One connection, to its end."""
        reader = socket.SocketIO(client, "rb")
        with self._lock:
            self._clients.add(client)
        try:
            self._serve(client, reader)
        finally:
            with self._lock:
                self._clients.discard(client)

    def _serve(self, client: socket.socket, reader: socket.SocketIO) -> None:
        with contextlib.suppress(OSError):
            while head := _read_head(reader):
                request = _Request(reader, head)
                fault = self._fault_for(request.line)
                if fault is not None and fault.kind == "reset":
                    _reset(client)
                    return
                if fault is not None and fault.kind == "stall":
                    self._ended.wait()
                    return
                if request.expects:
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                if not self._answer(client, request, fault):
                    return

    def _answer(self, client: socket.socket, request: _Request, fault: Fault | None) -> bool:
        """Whether the connection can be used again."""
        if fault is not None and fault.kind in ("status", "forget", "skew"):
            digest = hashlib.md5(usedforsecurity=False)
            for data in request.pieces():
                digest.update(data)
            client.sendall(_made_up(request, fault, digest.hexdigest()))
            return True
        if fault is not None and fault.kind == "reset-midway":
            next(request.pieces(), None)
            _reset(client)
            return False
        answer = self._pass_on(request, is_corrupt=fault is not None and fault.kind == "corrupt")
        if fault is not None and fault.kind == "lose-answer":
            _reset(client)
            return False
        head, _, body = answer.partition(b"\r\n\r\n")
        if fault is not None and fault.kind == "cut-answer":
            client.sendall(head + b"\r\n\r\n" + body[: len(body) // 2])
            return False
        client.sendall(answer)
        self.answered_bytes += len(answer)
        return False

    def _pass_on(self, request: _Request, *, is_corrupt: bool) -> bytes:
        with socket.create_connection(self._upstream, timeout=60) as upstream:
            upstream.sendall(request.head())
            for data in request.pieces():
                sent = bytes([data[0] ^ 1]) + data[1:] if is_corrupt else data
                is_corrupt = False
                upstream.sendall(sent)
                self.sent_bytes += len(sent)
            if request.left:
                raise ConnectionError("the client is gone")
            parts = []
            while data := upstream.recv(_PIECE_BYTES):
                parts.append(data)
        return b"".join(parts)

    def _hang_up(self) -> None:
        """End the connections that are open still: an end of a client's may not have been noticed."""
        with self._lock, contextlib.suppress(OSError):
            for client in self._clients:
                client.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def serving(self) -> Iterator[FaultProxy]:
        """Serves on a port of its own until the block is left."""
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy.serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = False
            block_on_close = True

        with Server(("127.0.0.1", 0), Handler) as server:
            host, port = server.server_address[:2]
            self.endpoint_url = f"http://{host!s}:{port}"
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            try:
                yield self
            finally:
                self._ended.set()
                server.shutdown()
                thread.join()
                self._hang_up()


def error_body(code: str, message: str = "", more: str = "") -> bytes:
    """An error of S3."""
    told = f"<Code>{code}</Code><Message>{message or code}</Message>{more}"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{told}</Error>'.encode()


def _made_up(request: _Request, fault: Fault, md5: str) -> bytes:
    now = dt.datetime.now(dt.UTC)
    status, body, headers = fault.status, fault.body, dict(fault.headers)
    if fault.kind == "forget":
        status, headers["ETag"] = 200, f'"{md5}"'
    elif fault.kind == "skew":
        now += _SKEW
        times = f"<ServerTime>{now:%Y-%m-%dT%H:%M:%SZ}</ServerTime>"
        status, body = 403, error_body("RequestTimeTooSkewed", more=times)
    headers |= {"Date": email.utils.format_datetime(now, usegmt=True)}
    if request.method == "HEAD":
        body = b""
    headers["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Made Up\r\n{head}\r\n".encode() + body


def _read_head(reader: socket.SocketIO) -> bytes:
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        data = reader.read(1)
        if not data:
            return b""
        head += data
    return bytes(head[:-4])


def _reset(client: socket.socket) -> None:
    """End a connection as one whose peer has died."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
