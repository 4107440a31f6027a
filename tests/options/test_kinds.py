"""Values as text and as TOML: what is taken, what is refused, and with which reason."""

from __future__ import annotations

import datetime as dt
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.options import (
    ADDRESS,
    BOOL,
    DURATION,
    FLOAT,
    HOST,
    HTTP_ADDRESS,
    INT,
    LISTEN_ADDRESS,
    LOG_LEVEL,
    NAME_VALUE,
    PATH,
    REGEX,
    SECRET,
    SIZE,
    STRFTIME,
    TEXT,
    TIMESTAMP,
    Address,
    Choice,
    Duration,
    Float,
    Int,
    Kind,
    OutOfRange,
    Size,
    join_address,
    parse_time_ns,
    render_duration,
    render_time_ns,
    split_address,
)
from nsqtools.options.kinds import duration_ns
from nsqtools.options.times import DIRECTIVES

NOON = 1_769_860_800 * 10**9  # 2026-01-31T12:00:00Z

TAKEN: list[tuple[Kind[Any], str, Any]] = [
    (TEXT, "", ""),
    (TEXT, "a b", "a b"),
    (INT, "-12", -12),
    (INT, "+7", 7),
    (FLOAT, "0.3", 0.3),
    (FLOAT, ".5", 0.5),
    (FLOAT, "1e3", 1000.0),
    (BOOL, "t", True),
    (BOOL, "False", False),
    (DURATION, "1h2m3.5s", 3723.5),
    (DURATION, "250ms", 0.25),
    (DURATION, "15us", 15e-6),
    (DURATION, "15µs", 15e-6),
    (DURATION, "0", 0.0),
    (DURATION, ".5s", 0.5),
    (DURATION, "1.s", 1.0),
    (DURATION, "+90s", 90.0),
    (Duration(minimum="-1ns"), "-1ns", -1e-9),
    (SIZE, "1048576", 1048576),
    (SIZE, "64k", 64_000),
    (SIZE, "10M", 10_000_000),
    (SIZE, "2G", 2 * 10**9),
    (SIZE, "64KiB", 65536),
    (SIZE, "3MiB", 3 * 2**20),
    (ADDRESS, "localhost:4150", "localhost:4150"),
    (ADDRESS, "[::1]:4150", "[::1]:4150"),
    (ADDRESS, "a_b.example.:1", "a_b.example.:1"),
    (LISTEN_ADDRESS, ":0", ":0"),
    (LISTEN_ADDRESS, "0.0.0.0:4150", "0.0.0.0:4150"),
    (Address(listen=True, empty=True), "", ""),
    (Address(unix=True), "/run/nsqd.sock", "/run/nsqd.sock"),
    (HTTP_ADDRESS, "127.0.0.1:4161", "127.0.0.1:4161"),
    (HTTP_ADDRESS, "https://lookup.example/nsq", "https://lookup.example/nsq"),
    (HTTP_ADDRESS, "http://[::1]:4161", "http://[::1]:4161"),
    (HOST, "db-1.example", "db-1.example"),
    (HOST, "::1", "::1"),
    (Choice(("none", "gzip")), "gzip", "gzip"),
    (Choice(("exponential",), {"": "exponential"}), "", "exponential"),
    (LOG_LEVEL, "WARNING", "warn"),
    (LOG_LEVEL, "debug", "debug"),
    (PATH, "/a/b", Path("/a/b")),
    (TIMESTAMP, "2026-01-31T12:00:00Z", NOON),
    (TIMESTAMP, "2026-01-31T13:00:00+01:00", NOON),
    (TIMESTAMP, "2026-01-31 12:00", NOON),
    (TIMESTAMP, "2026-01-31", NOON - 43_200 * 10**9),
    (TIMESTAMP, "2026-01-31T12:00:00.000000001Z", NOON + 1),
    (TIMESTAMP, "2026-01-31T12:00:00.5Z", NOON + 5 * 10**8),
    (TIMESTAMP, "1769860800", NOON),
    (TIMESTAMP, "1769860800000", NOON),
    (TIMESTAMP, "1769860800000000", NOON),
    (TIMESTAMP, "1769860800000000000", NOON),
    (TIMESTAMP, "0", 0),
]

REFUSED: list[tuple[Kind[Any], str, str]] = [
    (TEXT, "a\0b", "NUL"),
    (INT, "1_000", "whole number"),
    (INT, "٣", "whole number"),
    (INT, "9" * 65, "whole number"),
    (INT, "", "whole number"),
    (Int(minimum=1), "0", "at least 1"),
    (Int(maximum=9), "10", "at most 9"),
    (FLOAT, "nan", "number"),
    (FLOAT, "inf", "number"),
    (FLOAT, "1e999", "finite"),
    (Float(maximum=1), "1.5", "at most 1"),
    (BOOL, "yes", "true or false"),
    (DURATION, "5", "missing unit in duration, write for example 5s"),
    (DURATION, "1m5", "missing unit"),
    (DURATION, "1d", "unknown unit d"),
    (DURATION, "", "invalid duration"),
    (DURATION, "s", "invalid duration"),
    (DURATION, ".s", "invalid duration"),
    (DURATION, "1 s", "unknown unit"),
    (DURATION, "-1s", "at least 0s"),
    (DURATION, "9999999h", "too long"),
    (DURATION, "1" * 65 + "s", "invalid duration"),
    (Duration(maximum="5m"), "5m1ns", "at most 5m"),
    (SIZE, "10MB", "unknown unit MB"),
    (SIZE, "1.5M", "size in bytes"),
    (SIZE, "-1", "at least 0"),
    (Size(maximum=2**20), "2MiB", "at most 1MiB"),
    (ADDRESS, "localhost", "missing port"),
    (ADDRESS, "[::1]", "missing port"),
    (ADDRESS, "::1:4150", "brackets"),
    (ADDRESS, "[localhost]:1", "not an IPv6 address"),
    (ADDRESS, "a:65536", "up to 65535"),
    (ADDRESS, "a:0", "should not be 0"),
    (ADDRESS, ":4150", "missing host"),
    (ADDRESS, "a b:1", "not a host name"),
    (ADDRESS, "a" * 254 + ":1", "not a host name"),
    (ADDRESS, "http://a:1", "should not contain scheme"),
    (ADDRESS, "/run/nsqd.sock", "a path cannot be used"),
    (ADDRESS, "", "missing port"),
    (HTTP_ADDRESS, "ftp://a:1", "not an http"),
    (HTTP_ADDRESS, "http://user@host/", "not an http"),
    (HTTP_ADDRESS, "http://a:b/", "number up to 65535"),
    (HOST, "a/b", "not a host name"),
    (Choice(("none", "gzip")), "zip", "one of none, gzip"),
    (LOG_LEVEL, "loud", "one of debug, info"),
    (PATH, "", "empty"),
    (PATH, "a\0", "NUL"),
    (REGEX, "(", "not a regular expression"),
    (NAME_VALUE, ",x", "name,value"),
    (TIMESTAMP, "yesterday", "should be a time"),
    (TIMESTAMP, "2026-02-30", "not a time"),
    (TIMESTAMP, "2026-01-31T12:00:00+99:00", "zone"),
    (TIMESTAMP, "1969-12-31", "between 1970"),
    (TIMESTAMP, "9" * 19, "between 1970"),
    (TIMESTAMP, "9" * 20, "should be a time"),
    (TIMESTAMP, "0001-01-01T00:00+23:59", "not a time|between"),
]


@pytest.mark.parametrize(("kind", "text", "value"), TAKEN)
def test_text_is_read(kind: Kind[Any], text: str, value: object) -> None:
    assert kind.parse(text) == value
    assert kind.parse(kind.render(kind.parse(text))) == value


@pytest.mark.parametrize(("kind", "text", "reason"), REFUSED)
def test_text_is_refused_with_a_reason(kind: Kind[Any], text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        kind.parse(text)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (INT, 5, 5),
        (FLOAT, 1, 1.0),
        (FLOAT, 0.25, 0.25),
        (BOOL, True, True),
        (DURATION, "30s", 30.0),
        (Duration(toml_int_ms=True), 250, 0.25),
        (SIZE, 1024, 1024),
        (SIZE, "1MiB", 2**20),
        (TIMESTAMP, dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC), NOON),
        (TIMESTAMP, dt.date(2026, 1, 31), NOON - 43_200 * 10**9),
    ],
)
def test_toml_values_are_read(kind: Kind[Any], value: object, expected: object) -> None:
    assert kind.from_toml(value) == expected


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        (INT, True, "type bool"),
        (INT, 1.5, "type float"),
        (BOOL, 1, "type int"),
        (DURATION, 30, "missing unit"),
        (Duration(toml_int_ms=True), True, "type bool"),
        (SIZE, [], "type list"),
        (TEXT, 5, "type int"),
        (FLOAT, float("nan"), "should be a number"),
    ],
)
def test_toml_values_of_another_type_are_refused(
    kind: Kind[Any], value: object, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        kind.from_toml(value)


def test_out_of_range_carries_the_short_comparison() -> None:
    with pytest.raises(OutOfRange) as caught:
        Duration(minimum="100ms").parse("5ms")
    assert caught.value.comparison == "5ms < 100ms"


def test_a_setting_is_split_at_its_first_comma() -> None:
    setting = NAME_VALUE.parse("tls-cert,a,b")
    assert (setting.name, setting.value) == ("tls_cert", "a,b")
    assert NAME_VALUE.parse("snappy").value == "true"


def test_secrets_are_never_shown() -> None:
    assert "hunter2" not in SECRET.render("hunter2")
    assert "hunter2" not in NAME_VALUE.render(NAME_VALUE.parse("auth_secret,hunter2"))
    assert "hunter2" not in repr(NAME_VALUE.parse("auth_secrte,hunter2"))


@pytest.mark.parametrize(
    ("pattern", "found", "passed_over"),
    [
        ("^[[:alpha:]]+$", "log", "log1"),
        (r"log\z", "a.log", "log.a"),
        (r"\Qa.b\E", "a.b", "axb"),
        (r"^\pL+$", "orders", "a-b"),
        ("(?P<kind>log|audit)$", "a.audit", "a.x"),
        ("lo(?i)G", "log", "LOG"),
        ("^log$", "log", "log\n"),
        (r"^\w+$", "log", "l\u00f6g"),
    ],
)
def test_patterns_are_those_of_go(pattern: str, found: str, passed_over: str) -> None:
    made = REGEX.parse(pattern)
    assert made.search(found)
    assert not made.search(passed_over)


@pytest.mark.parametrize("pattern", ["(?=a)", "(?<!a)b", r"(a)\1", "a{1001}", "[[:foo:]]", "*a"])
def test_what_go_has_not_is_refused(pattern: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"not a regular expression: [a-z]"):
        REGEX.parse(pattern)
    assert capfd.readouterr().err == ""


def test_a_time_without_a_zone_is_local_as_in_logs_and_file_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "Asia/Kolkata")
            time.tzset()
            assert parse_time_ns("2026-01-31T05:30") == parse_time_ns("2026-01-31T00:00Z")
            assert parse_time_ns("2026-01-31") == parse_time_ns("2026-01-30T18:30:00Z")
            assert parse_time_ns("2026-01-31T05:30:00.5+00:00") % 10**9 == 500_000_000
    finally:
        time.tzset()


def test_formats_of_time() -> None:
    every = "".join(f"%{directive}" for directive in DIRECTIVES) + " plain %%"
    assert STRFTIME.parse(every) == every
    for text, reason in (
        ("%Y-%q", "unknown directive %q, known are aAbB"),
        ("%Y%", "a lone %"),
        ("%f", "unknown directive %f"),
        ("%-d", "unknown directive %-"),
        ("%\n", r"unknown directive %\\n"),
        ("\0", "NUL"),
    ):
        with pytest.raises(ValueError, match=reason):
            STRFTIME.parse(text)


def test_a_regex_is_compiled() -> None:
    assert REGEX.parse("^log").search("log.web")
    assert REGEX.render(REGEX.parse("^log")) == "^log"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (90, "1m30s"), (3600, "1h"), (0.25, "250ms"), (15e-6, "15us"), (-1e-9, "-1ns")],
)
def test_durations_are_written_short(seconds: float, text: str) -> None:
    assert render_duration(seconds) == text


@given(st.integers(min_value=0, max_value=10**15))
def test_a_written_duration_reads_back(nanoseconds: int) -> None:
    text = render_duration(nanoseconds / 10**9)
    assert duration_ns(text) == pytest.approx(nanoseconds, rel=1e-5)


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_a_written_time_reads_back(time_ns: int) -> None:
    assert parse_time_ns(render_time_ns(time_ns)) == time_ns


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    for kind in (
        INT,
        FLOAT,
        DURATION,
        SIZE,
        ADDRESS,
        HTTP_ADDRESS,
        TIMESTAMP,
        STRFTIME,
        REGEX,
        NAME_VALUE,
    ):
        with suppress(ValueError):
            kind.parse(text)


@given(st.text(alphabet="abc.:[]0123456789-%", max_size=20))
def test_an_accepted_address_splits_and_joins(text: str) -> None:
    try:
        host, port = split_address(text)
    except ValueError:
        return
    assert split_address(join_address(host, port)) == (host, port)
