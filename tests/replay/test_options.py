"""file_to_nsq's flags."""

from __future__ import annotations

import pytest

from nsqtools.errors import OptionsError
from nsqtools.options import help_text, load, options_of
from nsqtools.replay.options import FileToNsqOptions

SOUND = ["--topic=t", "--nsqd-tcp-address=127.0.0.1:4150", "a.log"]


def read(*argv: str) -> FileToNsqOptions:
    return load(FileToNsqOptions, "file_to_nsq", argv, {})


def test_defaults() -> None:
    options = read(*SOUND)
    assert options.files == ("a.log",)
    assert (options.record_format, options.mode, options.progress) == (
        "auto",
        "round-robin",
        "auto",
    )
    assert (options.rate_per_s, options.batch_size, options.in_flight) == (0, 500, 8)
    assert (options.max_msg_size_bytes, options.max_body_size_bytes) == (1048576, 5242880)
    assert (options.since_ns, options.until_ns) == (None, None)


def test_all_that_is_missing_is_told() -> None:
    with pytest.raises(OptionsError) as caught:
        read()
    assert caught.value.problems == (
        "name at least one file, folder or glob, or - for standard input",
        "--topic required",
        "--nsqd-tcp-address required",
    )


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["-", "-"], "standard input (-) can be read only once"),
        (["--since=2026-01-02", "--until=2026-01-01"], "--since should be before --until"),
        (["--since=never"], "should be a time"),
        (["--rate=-1"], "should be at least 0"),
        (["--batch-size=10001"], "should be at most 10000"),
        (["--max-body-size=1048577"], "--max-body-size should be at least 8 bytes more"),
        (["--producer-opt=dial_timeout,1"], "failed to coerce option dial_timeout (1)"),
        (["--mode=hostpool"], "should be one of round-robin"),
    ],
)
def test_mistakes(argv: list[str], problem: str) -> None:
    with pytest.raises(OptionsError) as caught:
        read(*SOUND, *argv)
    assert len(caught.value.problems) == 1
    assert problem in caught.value.problems[0]


def test_the_range_is_in_nanoseconds_and_utc() -> None:
    options = read(*SOUND, "--since=1970-01-01T00:00:01", "--until=2")
    assert (options.since_ns, options.until_ns) == (10**9, 2 * 10**9)


def test_the_producer_gets_its_options() -> None:
    producer = read(*SOUND, "--producer-opt=dial_timeout,3s").producer()
    assert producer.dial_timeout_s == 3.0
    assert producer.user_agent.startswith("file_to_nsq/")


def test_a_long_name_of_a_value_stands_apart_from_what_it_means() -> None:
    text = help_text("file_to_nsq", "", options_of(FileToNsqOptions), examples=(), exit_status={})
    assert "NAME=VALUE status=502" in text
