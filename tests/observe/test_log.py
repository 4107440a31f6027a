"""Operators' lines: shape, quoting, levels, repetition."""

from __future__ import annotations

import io
import logging
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.clock import ManualClock
from nsqtools.observe.log import (
    REPEAT_TEXTS_MAX,
    VALUE_LENGTH_MAX,
    Repeated,
    configure,
    get_log,
    render,
    with_values,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE = re.compile(r"\[t\] \d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} (DEBUG|INFO|WARNING|ERROR|FATAL): ")


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
    assert not log.is_debug()
    log.warning("shown 100%")
    log.error("also")
    configure("debug", "[t] ", stream=stream)
    log.debug("now")
    assert log.is_debug()
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
    assert "ERROR: odd\nTraceback" in stream.getvalue()


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
