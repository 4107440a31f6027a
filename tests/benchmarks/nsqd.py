"""A broker under measurement, ours or the real nsqd: started, asked over HTTP, stopped."""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.processes import BenchError, wait_until

if TYPE_CHECKING:
    from tests.benchmarks.processes import Child, Children

START_TIMEOUT_S = 20.0
IDLE_TIMEOUT_S = 300.0
POLL_S = 0.05
HTTP_TIMEOUT_S = 30.0


def our_program(name: str) -> list[str]:
    """The console script beside this interpreter, or the same by module."""
    script = Path(sys.executable).with_name(name)
    return [str(script)] if script.exists() else [sys.executable, "-m", "nsqtools", name]


@dataclass(frozen=True, slots=True)
class Span:
    """How long a channel took to be emptied: `messages` of them within `seconds`."""

    messages: int
    seconds: float


class Nsqd:
    """One running broker; it lives as long as `Children`."""

    def __init__(self, children: Children, label: str, argv: list[str]) -> None:
        self.label = label
        self.tcp_port, self.http_port = _free_port(), _free_port()
        data_path = children.folder / f"data-{self.tcp_port}"
        data_path.mkdir()
        self.child: Child = children.start(
            label,
            [
                *argv,
                f"--tcp-address={self.tcp_address}",
                f"--http-address=127.0.0.1:{self.http_port}",
                f"--data-path={data_path}",
            ],
        )
        wait_until(self._answers, self.child, START_TIMEOUT_S, f"{label} listens")

    @property
    def tcp_address(self) -> str:
        return f"127.0.0.1:{self.tcp_port}"

    def create(self, topic: str, channel: str = "") -> None:
        self._request("POST", f"/topic/create?topic={topic}")
        if channel:
            self._request("POST", f"/channel/create?topic={topic}&channel={channel}")

    def delete(self, topic: str) -> None:
        self._request("POST", f"/topic/delete?topic={topic}")

    def published(self, topic: str) -> int:
        """How many messages the topic has got."""
        return int(self._topic(topic)["message_count"])

    def backlog(self, topic: str, channel: str) -> int:
        """Messages of a channel that are not finished yet."""
        for found in self._topic(topic)["channels"]:
            if found["channel_name"] == channel:
                waits = found["depth"] + found["in_flight_count"] + found["deferred_count"]
                return int(waits)
        raise BenchError(f"{self.label} knows no channel {channel} of {topic}")

    def wait_for_backlog(self, topic: str, channel: str, count: int) -> None:
        """Wait until the channel holds so many: the real nsqd fills channels in its own time."""
        wait_until(
            lambda: self.backlog(topic, channel) == count,
            self.child,
            IDLE_TIMEOUT_S,
            f"{count} messages wait in {channel}",
        )

    def time_emptying(
        self, topic: str, channel: str, count: int, consumer: Child, *, tail: int = 0
    ) -> Span:
        """From the first finished message to the last but `tail`, seen every POLL_S; then the rest is
        waited for."""
        deadline_s = time.monotonic() + IDLE_TIMEOUT_S
        from_s, from_left = time.perf_counter(), count
        span: Span | None = None
        while True:
            left = self.backlog(topic, channel)
            now_s = time.perf_counter()
            if span is None and left <= tail:
                span = Span(from_left - left, now_s - from_s)
            if span is not None and left == 0:
                return span
            if from_left == count:  # nothing was finished when we last looked
                from_s, from_left = now_s, left
            if not consumer.is_running() or time.monotonic() > deadline_s:
                raise BenchError(f"{left} messages are left\n{consumer.stderr[-2000:]}")
            time.sleep(POLL_S)

    def _answers(self) -> bool:
        try:
            self._request("GET", "/ping")
        except OSError:
            return False
        return True

    def _topic(self, topic: str) -> Any:
        path = f"/stats?format=json&topic={topic}&include_clients=false&include_mem=false"
        topics = json.loads(self._request("GET", path))["topics"]
        if len(topics) != 1:
            raise BenchError(f"{self.label} knows no topic {topic}")
        return topics[0]

    def _request(self, method: str, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=HTTP_TIMEOUT_S)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise BenchError(f"{self.label}: {method} {path}: {response.status} {body[:200]!r}")
        return body


def _free_port() -> int:
    """A port that is free now: the real nsqd does not say which one it took."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
