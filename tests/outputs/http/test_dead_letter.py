"""When messages may be given up."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from nsqtools.archive.failures import Failure
from nsqtools.errors import ConnectionFailed, ServerError
from nsqtools.outputs.contract import DONE, Again, Refused
from nsqtools.outputs.http.breaker import (
    BREAKER_MIN,
    BREAKER_WINDOW,
    HELD_MAX_S,
    HELD_S,
    PROBE_S,
    Breaker,
    held,
)
from nsqtools.outputs.http.dead_letter import DeadLetterTopic
from nsqtools.wire.messages import Messages, encode_payload

if TYPE_CHECKING:
    import pytest

    from nsqtools.client.producer import Producer


def note(breaker: Breaker, failed: int, done: int) -> None:
    for _ in range(failed):
        breaker.note_failed()
    breaker.note_done(done)


def test_a_few_bad_messages_are_no_outage() -> None:
    breaker = Breaker(0.5, "t")
    note(breaker, BREAKER_MIN - 1, 0)
    assert not breaker.is_open, "too few to tell"
    note(breaker, 0, 500)
    note(breaker, 40, 60)
    assert not breaker.is_open


def test_when_most_fail_it_is_an_outage_until_they_do_not() -> None:
    breaker = Breaker(0.5, "t")
    seen = []
    for failed, done in (
        (BREAKER_MIN, 0),
        (0, BREAKER_MIN),
        (BREAKER_WINDOW, 0),
        (0, BREAKER_WINDOW // 2),  # what is long ago does not count
    ):
        note(breaker, failed, done)
        seen.append(breaker.is_open)
    assert seen == [True, False, True, False]


def test_an_outage_is_told_with_its_topic_and_what_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    breaker = Breaker(0.5, "orders")
    breaker.last_error = "got status code 401"
    note(breaker, BREAKER_MIN, BREAKER_MIN)
    assert breaker.why == "most messages fail: an outage: got status code 401"
    assert caplog.text.count("topic=orders") == 2, "its begin, and its end"
    assert 'error="got status code 401"' in caplog.text


def test_a_ratio_of_one_gives_everything_up() -> None:
    breaker = Breaker(1.0, "t")
    note(breaker, 1000, 0)
    assert not breaker.is_open


def test_in_an_outage_one_delivery_at_a_time_is_sent() -> None:
    breaker = Breaker(0.5, "t")
    assert breaker.wait_s(10.0) == 0
    note(breaker, BREAKER_WINDOW, 0)
    assert breaker.wait_s(10.0) == 0, "the first probe"
    breaker.probe_began()
    assert breaker.wait_s(10.0) > 0
    breaker.probe_ended(11.0)
    assert breaker.wait_s(11.0) == PROBE_S
    assert breaker.wait_s(11.0 + PROBE_S) == 0
    breaker.probe_began()
    note(breaker, 0, 1)
    breaker.probe_ended(12.0)
    assert breaker.is_open
    assert breaker.wait_s(12.0) == 0, "something went well: the next one at once"


def test_what_fails_in_an_outage_is_held_longer_each_time() -> None:
    assert [held(tries).after_s for tries in (0, 1, 2, 100)] == [
        HELD_S,
        HELD_S,
        2 * HELD_S,
        HELD_MAX_S,
    ]


class TakesSome:
    """A producer of an nsqd that never takes what begins with `large`, and is gone for `later`."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    async def publish(self, topic: str, body: bytes) -> None:
        assert topic == "dead"
        if body.startswith(b"large"):
            raise ServerError("E_BAD_MESSAGE", "PUB message too big")
        if body.startswith(b"later"):
            raise ConnectionFailed("127.0.0.1:1", "gone")
        self.taken.append(body)


async def test_each_dead_letter_of_a_topic_has_its_own_answer() -> None:
    """One that nsqd never takes stays with nsqd, and costs no other; none is published twice."""
    producer = TakesSome()
    letters = DeadLetterTopic("dead", [cast("Producer", producer)])
    bodies = [b"one", b"large", b"two", b"later"]
    messages = Messages([encode_payload(1, 1, b"0" * 16, body) for body in bodies], nsqd="n:1")
    failure = Failure(status=400, error="no", tries=1)
    answers = await letters.keep([(messages, at, failure) for at in range(4)])
    assert [type(answer) for answer in answers] == [type(DONE), Refused, type(DONE), Again]
    assert producer.taken == [b"one", b"two"]
