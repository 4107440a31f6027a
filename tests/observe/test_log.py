"""Operators' lines: shape, quoting, levels, repetition."""

from __future__ import annotations

import datetime as dt
import io
import json
import logging
import re
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.clock import ManualClock
from nsqtools.observe.lines import (
    LINE_LENGTH_MAX,
    RATE_INTERVAL_S,
    RATE_LINES_MAX,
    VALUE_LENGTH_MAX,
    JsonFormatter,
    RateLimit,
    TextFormatter,
    render,
    with_values,
)
from nsqtools.observe.log import (
    REPEAT_TEXTS_MAX,
    Repeated,
    configure,
    get_log,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE = re.compile(
    r"\[t\] \d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d (DEBUG|INFO|WARNING|ERROR|FATAL): "
)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Our handler on a stream of its own; logging is given back as it was."""
    root, ours = logging.getLogger(), logging.getLogger("nsqtools")
    before = root.level, ours.level, list(root.handlers)
    stream = io.StringIO()
    configure("info", "[t] ", stream=stream)
    yield stream
    root.handlers[:] = before[2]
    root.setLevel(before[0])
    ours.setLevel(before[1])


def texts(stream: io.StringIO) -> list[str]:
    lines = stream.getvalue().splitlines()
    assert all(LINE.match(line) for line in lines)
    return [line.partition(": ")[2] for line in lines]


def test_a_line_is_nsq_like(stream: io.StringIO) -> None:
    get_log("archive").info("opened file", topic="orders", path="/a b", size_bytes=5)
    assert LINE.match(stream.getvalue())
    assert texts(stream) == ['opened file topic=orders path="/a b" size_bytes=5']


def test_levels(stream: io.StringIO) -> None:
    log = get_log()
    log.debug("hidden")
    log.warning("shown 100%")
    log.error("also")
    configure("debug", "[t] ", stream=stream)
    log.debug("now")
    logging.getLogger("other").info("not of others")
    logging.getLogger("other").warning("but %s", "this")
    assert texts(stream) == ["shown 100%", "also", "now", "but this"]


def test_configuring_again_replaces(stream: io.StringIO) -> None:
    configure("info", "[t] ", stream=stream)
    get_log().info("once")
    assert texts(stream) == ["once"]


def test_fatal_is_nsqs_word(stream: io.StringIO) -> None:
    logging.getLogger("nsqtools").critical("gone")
    assert " FATAL: gone" in stream.getvalue()


def test_a_traceback_follows_its_line(stream: io.StringIO) -> None:
    try:
        _ = 1 // 0
    except ZeroDivisionError:
        logging.getLogger("nsqtools").exception("odd")
    assert "ERROR: odd\n  Traceback" in stream.getvalue()


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("topic", "orders", "orders"),
        ("path", "/a b", '"/a b"'),
        ("path", "", '""'),
        ("q", 'a"b\\c', '"a\\"b\\\\c"'),
        ("q", "a=b", '"a=b"'),
        ("q", "a\nINFO: forged", '"a\\nINFO: forged"'),
        ("q", "\x1b[2J\u202e", '"\\x1b[2J\\u202e"'),
        ("ok", True, "true"),
        ("rate", 0.123456789, "0.123457"),
        ("body", b"payload", "<7 bytes>"),
        ("body", bytearray(3), "<3 bytes>"),
        ("auth_secret", "hunter2", "***"),
        ("Password", "hunter2", "***"),
        ("error", ValueError(), "ValueError"),
        ("error", OSError(2, "No such file"), '"[Errno 2] No such file"'),
    ],
)
def test_values(key: str, value: object, text: str) -> None:
    assert render(key, value) == text


def test_long_values_are_cut() -> None:
    assert render("error", "x" * (VALUE_LENGTH_MAX + 1)) == "x" * VALUE_LENGTH_MAX + "..."


def test_times_carry_their_zone(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        record = logging.makeLogRecord({"created": 1_700_000_000.25, "msg": "up"})
        assert TextFormatter("").format(record).startswith("2023/11/15 03:58:20.250000+05:45 ")
        found = json.loads(JsonFormatter().format(record))
        assert found["ts"] == "2023-11-15T03:58:20.250000+05:45"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_json_lines(stream: io.StringIO) -> None:
    configure("info", "[t] ", log_format="json", stream=stream)
    log = get_log("archive").bind(topic="orders", channel="a")
    log.info("opened", path="/a b", size_bytes=5, share=0.5, ok=True, none=None, body=b"123")
    log.error("bad\n", error=ValueError(), auth_secret="x", level=1, rate=float("inf"))
    logging.getLogger("other").warning("plain %s", "line\n\x1b")
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    for line in found:
        dt.datetime.fromisoformat(line.pop("ts"))
    bound = {"topic": "orders", "channel": "a"}
    assert found == [
        {"level": "INFO", "message": "opened", **bound, "path": "/a b", "size_bytes": 5}
        | {"share": 0.5, "ok": True, "none": None, "body": "<3 bytes>"},
        {"level": "ERROR", "message": "bad\\n", **bound, "error": "ValueError"}
        | {"auth_secret": "***", "level_": 1, "rate": "inf"},
        {"level": "WARNING", "message": "plain line\\n\\x1b"},
    ]
    assert list(json.loads(stream.getvalue().splitlines()[0]))[:4] == [
        *("ts", "level", "message", "topic")
    ]


def test_a_traceback_in_json(stream: io.StringIO) -> None:
    configure("info", "", log_format="json", stream=stream)
    try:
        _ = 1 // 0
    except ZeroDivisionError:
        logging.getLogger("nsqtools").exception("odd")
    assert "ZeroDivisionError" in json.loads(stream.getvalue())["traceback"]


def test_bound_values_come_first_and_can_be_replaced(stream: io.StringIO) -> None:
    log = get_log().bind(topic="a", channel="c")
    log.bind(topic="b").info("x", nsqd="n")
    log.info("y")
    assert texts(stream) == ["x topic=b channel=c nsqd=n", "y topic=a channel=c"]


def test_text_from_elsewhere_is_made_safe_whoever_logs_it(stream: io.StringIO) -> None:
    logging.getLogger("nsqtools.client").warning("%s", "a\n[t] INFO: forged \x1b[2J")
    logging.getLogger("nsqtools.client").warning("%s", "x" * (LINE_LENGTH_MAX + 1))
    url = "http://user:hun@ter2@host/path"
    logging.getLogger("nsqtools.client").warning("cannot reach %s", url)
    get_log().info("asked", url=url)
    assert texts(stream) == [
        "a\\n[t] INFO: forged \\x1b[2J",
        "x" * LINE_LENGTH_MAX + "...",
        "cannot reach http://user:***@host/path",
        "asked url=http://user:***@host/path",
    ]


def test_a_message_that_comes_too_often_is_left_out_and_counted() -> None:
    limit = RateLimit()
    now = 1000.0

    def passes(message: str, level: int = logging.INFO) -> str | None:
        record = logging.LogRecord("n", level, "", 0, message + " %d", (7,), None)
        record.created = now
        return record.getMessage() if limit.filter(record) else None

    passed = [passes("a") for _ in range(RATE_LINES_MAX + 5)]
    last = f'a 7 limit="more than {RATE_LINES_MAX} in 60 s are left out"'
    assert passed == ["a 7"] * (RATE_LINES_MAX - 1) + [last] + [None] * 5
    assert passes("b") == "b 7"
    assert passes("a", logging.DEBUG) == "a 7"
    now += RATE_INTERVAL_S
    assert passes("a") == "a 7 left_out=5"
    assert passes("a") == "a 7"


@given(st.text(), st.text())
def test_a_line_stays_one_line(message: str, value: str) -> None:
    assert with_values(message, {"a": value}).isprintable()


def test_repetition_is_told_once_an_interval_with_a_count(stream: io.StringIO) -> None:
    clock = ManualClock()
    trouble = Repeated(get_log(), "cannot connect", clock=clock, interval_s=60)
    trouble.recovered("connected")
    for _ in range(5):
        trouble.failed("refused", nsqd="a:1")
    assert trouble.is_failing
    clock.jump(59.9)
    trouble.failed("refused", nsqd="a:1")
    clock.jump(0.1)
    trouble.failed("refused", nsqd="a:1")
    trouble.failed("timed out", nsqd="a:1")
    trouble.recovered("connected", nsqd="a:1")
    trouble.recovered("connected", nsqd="a:1")
    trouble.failed("refused", nsqd="a:1")
    assert texts(stream) == [
        "cannot connect nsqd=a:1 error=refused",
        "cannot connect nsqd=a:1 error=refused repeated=5",
        'cannot connect nsqd=a:1 error="timed out"',
        "connected nsqd=a:1 failures=8 lasted_s=60",
        "cannot connect nsqd=a:1 error=refused",
    ]


def test_repetition_is_bounded(stream: io.StringIO) -> None:
    trouble = Repeated(get_log(), "bad", clock=ManualClock(), interval_s=60)
    for number in range(10 * REPEAT_TEXTS_MAX):
        trouble.failed(f"error {number}")
    assert len(texts(stream)) == REPEAT_TEXTS_MAX + 1
