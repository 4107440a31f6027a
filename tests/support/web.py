"""Plain HTTP for tests: what is asked for is sent as it is, no path or query is touched."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, NamedTuple

from tests.support.nsqd import PATIENCE_S, Nsqd

POLL_S = 0.02


class WebAnswer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> str:
        """What a V1 error says."""
        text: str = json.loads(self.body)["message"]
        return text

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def encode_request(
    method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> bytes:
    lines = {
        "Host": "x",
        "Connection": "close",
        "Content-Length": str(len(body)),
        **(headers or {}),
    }
    if "Transfer-Encoding" in lines:
        del lines["Content-Length"]
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


async def request(
    nsqd: Nsqd | str,
    method: str,
    target: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> WebAnswer:
    """One request on a connection of its own."""
    address = nsqd if isinstance(nsqd, str) else nsqd.http_address
    return await exchange(address, encode_request(method, target, body, headers))


async def exchange(address: str, raw: bytes) -> WebAnswer:
    """Send these bytes and read one answer, to the end of the connection."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(raw)
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return parse_answer(answer)


def parse_answer(raw: bytes) -> WebAnswer:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    if headers.get("Transfer-Encoding") == "chunked":
        body = _join_chunks(body)
    return WebAnswer(int(first.split()[1]), headers, body)


def _join_chunks(rest: bytes) -> bytes:
    """The real nsqd sends whatever is longer than 2 KiB in chunks, even where the connection is closed
    behind it: that is what Go's server does."""
    parts: list[bytes] = []
    while True:
        size, _, rest = rest.partition(b"\r\n")
        end = int(size, 16)
        parts.append(rest[:end])
        assert rest[end : end + 2] == b"\r\n", "cut off"
        if not end:
            return b"".join(parts)
        rest = rest[end + 2 :]


async def post(nsqd: Nsqd, target: str, body: bytes = b"") -> None:
    """POST that has to succeed."""
    answer = await request(nsqd, "POST", target, body)
    assert answer.status == 200, answer


async def get_stats(nsqd: Nsqd, parameters: str = "") -> Any:
    answer = await request(nsqd, "GET", f"/stats?format=json&{parameters}")
    assert answer.status == 200, answer
    return answer.json


async def topic_stats(nsqd: Nsqd, topic: str) -> Any:
    """One topic as /stats has it; None when there is none."""
    topics = (await get_stats(nsqd, f"topic={topic}"))["topics"]
    return topics[0] if topics else None


async def channel_stats(nsqd: Nsqd, topic: str, channel: str) -> Any:
    """One channel as /stats has it; None when there is none."""
    found = await topic_stats(nsqd, topic)
    channels = [] if found is None else found["channels"]
    return next((one for one in channels if one["channel_name"] == channel), None)


async def until_channel(nsqd: Nsqd, topic: str, channel: str, **wanted: object) -> Any:
    """Wait until /stats has the channel with these values; gives all that it has.

    The real nsqd hands messages from topic to channel to consumer in its own time: an OK says that the
    topic has got them, and no more (spec: tcp-protocol, 7).
    """
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await channel_stats(nsqd, topic, channel)
            if found is not None and all(found[key] == value for key, value in wanted.items()):
                return found
            await asyncio.sleep(POLL_S)
