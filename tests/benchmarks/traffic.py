"""The other side of a figure, each in a process of its own: `python -m tests.benchmarks.traffic MODE`.

write   as NSQ's bench_writer: two connections, MPUBs of 200, each waits for its OK
read    as NSQ's bench_reader: two connections, RDY 2500, a FIN for every message
send    the floor of the network: the same frames from memory, without any work
store   the floor of the disk: the same bytes, with the same number of fdatasyncs

Each prints one JSON object: what it moved, how long it took, and the processor time that this cost.
Everything is encoded before the clock starts.
"""

from __future__ import annotations

import itertools
import json
import os
import selectors
import socket
import struct
import sys
import time
from pathlib import Path

from tests.benchmarks import data

CONNECTIONS = 2
RDY = 2500
BUFFER_BYTES = 1 << 20
TIMEOUT_S = 120.0
MAGIC = b"  V2"
OK_FRAME = struct.pack(">ii", 6, 0) + b"OK"
# As few heartbeats as may be (nsqd lets nobody SUB without any): the other frames are of one size.
IDENTIFY_BODY = b'{"heartbeat_interval":60000}'
HEARTBEAT_FRAME = struct.pack(">ii", 15, 0) + b"_heartbeat_"
_HEAD_AND_ID = struct.Struct(f">8s10x16s{data.MESSAGE_BYTES}x")


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def expect_ok(sock: socket.socket) -> None:
    answer = b""
    while len(answer) < len(OK_FRAME):
        more = sock.recv(len(OK_FRAME) - len(answer))
        if not more:
            break
        answer += more
    if answer != OK_FRAME:
        raise RuntimeError(f"nsqd answered {answer + sock.recv(200)!r}")


def greet(port: int) -> socket.socket:
    sock = connect(port)
    sock.sendall(MAGIC + b"IDENTIFY\n" + struct.pack(">i", len(IDENTIFY_BODY)) + IDENTIFY_BODY)
    expect_ok(sock)
    return sock


def write(port: int, topic: str, path: Path, count: int) -> int:
    """Publish `count` messages; returns how many were answered OK."""
    full, times, rest = data.mpubs(path, topic, count)
    socks = [greet(port) for _ in range(CONNECTIONS)]
    began()
    waiting = itertools.islice(itertools.cycle(full), times)
    everything = iter(itertools.chain(waiting, [rest] if rest else []))
    answered = _publish(socks, everything)
    ended()
    expected = times + bool(rest)
    if answered != expected:
        raise RuntimeError(f"{answered} of {expected} MPUBs were answered")
    return count


def _publish(socks: list[socket.socket], everything: itertools.chain[bytes]) -> int:
    answered = 0
    with selectors.EpollSelector() as selector:
        busy = 0
        for sock in socks:
            if (mpub := next(everything, None)) is not None:
                selector.register(sock, selectors.EVENT_READ)
                sock.sendall(mpub)
                busy += 1
        while busy:
            ready = selector.select(TIMEOUT_S)
            if not ready:
                raise RuntimeError("nsqd does not answer")
            for key, _ in ready:
                sock = socks[0] if key.fileobj is socks[0] else socks[1]
                expect_ok(sock)
                answered += 1
                if (mpub := next(everything, None)) is not None:
                    sock.sendall(mpub)
                else:
                    busy -= 1
    return answered


class Reader:
    """One connection of bench_reader."""

    def __init__(self, port: int, topic: str, channel: str) -> None:
        self.sock = greet(port)
        self.sock.sendall(f"SUB {topic} {channel}\n".encode())
        expect_ok(self.sock)
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._held = 0

    def take(self) -> int:
        """Read once, and FIN every whole message; returns how many."""
        count = self.sock.recv_into(self._buffer[self._held :])
        if not count:
            raise RuntimeError("nsqd closed the connection")
        self._held += count
        while whole := self._held - self._held % data.FRAME_BYTES:
            heads, ids = zip(*_HEAD_AND_ID.iter_unpack(self._buffer[:whole]), strict=True)
            if set(heads) == {data.FRAME_SIZE_AND_TYPE}:
                self.sock.sendall(b"FIN " + b"\nFIN ".join(ids) + b"\n")
                self._keep(bytes(self._buffer[whole : self._held]))
                return len(ids)
            self._drop_heartbeat()
        return 0

    def _keep(self, rest: bytes) -> None:
        self._buffer[: len(rest)] = rest
        self._held = len(rest)

    def _drop_heartbeat(self) -> None:
        """Take a heartbeat out from between messages, and answer it."""
        held = bytes(self._buffer[: self._held])
        at = held.find(HEARTBEAT_FRAME)
        if at < 0:
            raise RuntimeError(f"not a message: {held[:80]!r}")
        self._keep(held[:at] + held[at + len(HEARTBEAT_FRAME) :])
        self.sock.sendall(b"NOP\n")

    def close(self) -> None:
        """End our side first, so that nsqd has taken every FIN when it ends its own."""
        self.sock.shutdown(socket.SHUT_WR)
        while self.sock.recv_into(self._buffer):
            pass
        self.sock.close()


def read(port: int, topic: str, channel: str, count: int) -> int:
    """Consume `count` messages; returns how many came."""
    readers = [Reader(port, topic, channel) for _ in range(CONNECTIONS)]
    came = 0
    with selectors.EpollSelector() as selector:
        for reader in readers:
            selector.register(reader.sock, selectors.EVENT_READ, reader)
        began()
        for reader in readers:
            reader.sock.sendall(b"RDY %d\n" % RDY)
        while came < count:
            ready = selector.select(TIMEOUT_S)
            if not ready:
                raise RuntimeError(f"{came} of {count} messages came, then nothing")
            for key, _ in ready:
                came += key.data.take()
        ended()
    for reader in readers:
        reader.close()
    return came


def send(port: int, path: Path, count: int) -> int:
    """Send `count` frames to a plain receiver."""
    blob = memoryview(data.frames(path))
    sock = connect(port)
    began()
    left = count * data.FRAME_BYTES
    while left:
        piece = blob[:left]
        sock.sendall(piece)
        left -= len(piece)
    sock.shutdown(socket.SHUT_WR)
    sock.recv(1)
    ended()
    return count


def store(source: Path, target: Path, syncs: int) -> int:
    """Write the bytes of every file of a folder into one, synced so often; returns how many bytes."""
    content = b"".join(path.read_bytes() for path in sorted(source.iterdir()) if path.is_file())
    step = max(1, -(-len(content) // syncs))
    view = memoryview(content)
    file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    began()
    for at in range(0, len(content), step):
        os.write(file, view[at : at + step])
        os.fdatasync(file)
    ended()
    os.close(file)
    return len(content)


_measured = {"from_s": 0.0, "to_s": 0.0, "cpu_from_s": 0.0, "cpu_to_s": 0.0}


def began() -> None:
    _measured.update(from_s=time.perf_counter(), cpu_from_s=time.process_time())


def ended() -> None:
    _measured.update(to_s=time.perf_counter(), cpu_to_s=time.process_time())


def main(argv: list[str]) -> None:
    mode, *words = argv
    if mode == "write":
        port, topic, path, count = words
        moved = write(int(port), topic, Path(path), int(count))
    elif mode == "read":
        port, topic, channel, count = words
        moved = read(int(port), topic, channel, int(count))
    elif mode == "send":
        port, path, count = words
        moved = send(int(port), Path(path), int(count))
    elif mode == "store":
        source, target, syncs = words
        moved = store(Path(source), Path(target), int(syncs))
    else:
        raise SystemExit(f"unknown mode {mode}")
    seconds = _measured["to_s"] - _measured["from_s"]
    cpu_s = _measured["cpu_to_s"] - _measured["cpu_from_s"]
    print(json.dumps({"moved": moved, "seconds": seconds, "cpu_s": cpu_s}))


if __name__ == "__main__":
    main(sys.argv[1:])
