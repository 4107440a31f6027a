"""A stand-in for nsqlookupd's HTTP API that says what a test wants it to say."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Answer = tuple[int, bytes]
UNKNOWN: Answer = (404, b'{"message":"TOPIC_NOT_FOUND"}')


def listing(*producers: tuple[str, int]) -> Answer:
    """An answer to `/lookup`: hosts and TCP ports."""
    entries = [{"broadcast_address": host, "tcp_port": port} for host, port in producers]
    return 200, json.dumps({"channels": [], "producers": entries}).encode()


def topic_list(*topics: str) -> Answer:
    """An answer to `/topics`."""
    return 200, json.dumps({"topics": topics}).encode()


class FakeLookupd:
    """Answers every request with `answer`, after `gate` opens; remembers what it was asked.

    What stands in `answers` under the beginning of a request's target comes before `answer`; of
    several the longest.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.answers: dict[str, Answer] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[str] = []
        self.address = ""
        self.hangs = ""
        """What is asked with a target that begins so is never answered."""
        self.location = ""
        """Where to send those who ask; an answer of its own when it is empty."""

    def topics_asked(self) -> set[str]:
        """The topics whose producers were asked for."""
        targets = [asked.split(" ")[1] for asked in self.asked]
        return {one.partition("topic=")[2] for one in targets if one.startswith("/lookup")}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        await self.gate.wait()
        target = self.asked[-1].split(" ")[1]
        if self.hangs and target.startswith(self.hangs):
            await reader.read()
            return
        found = [start for start in self.answers if target.startswith(start)]
        if self.location:
            head = f"HTTP/1.1 302 X\r\nLocation: {self.location}\r\nContent-Length: 0\r\n\r\n"
            writer.write(head.encode())
            return
        status, body = self.answers[max(found, key=len)] if found else self.answer
        head = f"HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()


@asynccontextmanager
async def lookupds(*answers: Answer) -> AsyncIterator[list[FakeLookupd]]:
    """One for each answer."""
    fakes = [FakeLookupd(answer) for answer in answers]
    servers = [await asyncio.start_server(fake.serve, "127.0.0.1", 0) for fake in fakes]
    for fake, server in zip(fakes, servers, strict=True):
        fake.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield fakes
    finally:
        for fake in fakes:
            fake.gate.set()
        for server in servers:
            server.close()
        # Let the handlers of clients that went away end.
        await asyncio.sleep(0.005)
