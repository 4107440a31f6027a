"""Why a message is in a dead letter: kept beside it in the record format `jsonl`."""

from __future__ import annotations

from dataclasses import dataclass

from nsqtools.wire.messages import Messages

# How much of an error a dead letter keeps.
ERROR_LENGTH_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The last try: its `status`, 0 where there was no reply, its `error`, and how many `tries` there
    were since the message came the last time."""

    status: int
    error: str
    tries: int


class FailedMessages(Messages):
    """Messages, each with its failure."""

    def __init__(self, payloads: list[bytes], failures: list[Failure], *, nsqd: str = "") -> None:
        super().__init__(payloads, nsqd=nsqd)
        self.failures = failures

    def part(self, start: int, stop: int) -> FailedMessages:
        payloads, failures = self.payloads[start:stop], self.failures[start:stop]
        return FailedMessages(payloads, failures, nsqd=self.nsqd)
