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
POLL_S = 0.02
# A subscription is looked for more often: what comes before it counts as start-up.
START_POLL_S = 0.005
HTTP_TIMEOUT_S = 30.0


def our_program(name: str) -> list[str]:
    """The console script beside this interpreter, or the same by module."""
    script = Path(sys.executable).with_name(name)
    return [str(script)] if script.exists() else [sys.executable, "-m", "nsqtools", name]


@dataclass(frozen=True, slots=True)
class Span:
    """How long a channel took to be emptied: `messages` within `seconds`; until somebody subscribed,
    `start_s` went by."""

    messages: int
    seconds: float
    start_s: float


class Nsqd:
    """One running broker; it lives as long as `Children`."""

    def __init__(self, children: Children, label: str, argv: list[str]) -> None:
        self.label = label
        self.tcp_port, self.http_port = free_port(), free_port()
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
        found = self._channel(topic, channel)
        return int(found["depth"] + found["in_flight_count"] + found["deferred_count"])

    def wait_for_backlog(self, topic: str, channel: str, count: int) -> None:
        """Wait until the channel holds so many: the real nsqd fills channels in its own time."""
        wait_until(
            lambda: self.backlog(topic, channel) == count,
            self.child,
            IDLE_TIMEOUT_S,
            f"{count} messages wait in {channel}",
        )

    def time_emptying(self, topic: str, channel: str, consumer: Child) -> Span:
        """From the subscription of `consumer`, which was just started, until nothing waits or is in
        flight: then the last message was acknowledged."""
        started_s = time.perf_counter()
        messages = self.backlog(topic, channel)
        while not self._channel(topic, channel)["client_count"]:
            self._check(consumer, started_s, messages)
            time.sleep(START_POLL_S)
        subscribed_s = time.perf_counter()
        while left := self.backlog(topic, channel):
            self._check(consumer, subscribed_s, left)
            time.sleep(POLL_S)
        seconds = time.perf_counter() - subscribed_s
        return Span(messages=messages, seconds=seconds, start_s=subscribed_s - started_s)

    def _check(self, consumer: Child, since_s: float, left: int) -> None:
        if not consumer.is_running() or time.perf_counter() - since_s > IDLE_TIMEOUT_S:
            raise BenchError(f"{left} messages are left\n{consumer.stderr[-2000:]}")

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

    def _channel(self, topic: str, channel: str) -> Any:
        for found in self._topic(topic)["channels"]:
            if found["channel_name"] == channel:
                return found
        raise BenchError(f"{self.label} knows no channel {channel} of {topic}")

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


def free_port() -> int:
    """A port that is free now: the real nsqd does not say which one it took."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
