"""nsq_to_file's flags: NSQ's names, defaults and words (spec: tools, 1.1)."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsqtools.archive import formats
from nsqtools.errors import OptionsError
from nsqtools.options import NAME_VALUE, Choice, load, options_of, settings_of
from nsqtools.outputs.archive_options import COMPRESSION, RECORD_FORMAT
from nsqtools.programs.nsq_to_file.options import NsqToFileOptions

SOUND = ["--topic=t", "--nsqd-tcp-address=127.0.0.1:4150"]
# NSQ's flags and defaults, as its own tool shows them.
NSQ_DEFAULTS = {
    "topic": "",
    "topic_pattern": "",
    "topic_refresh": "1m",
    "channel": "nsq_to_file",
    "nsqd_tcp_address": "",
    "lookupd_http_address": "",
    "consumer_opt": "",
    "max_in_flight": "",  # NSQ: 200
    "http_client_connect_timeout": "2s",
    "http_client_request_timeout": "5s",
    "log_prefix": "[nsq_to_file] ",
    "log_level": "info",
    "output_dir": "/tmp",
    "work_dir": "",
    "datetime_format": "%Y-%m-%d_%H",
    "filename_format": "<TOPIC>.<HOST><REV>.<DATETIME>.log",
    "host_identifier": "",
    "gzip": "false",
    "gzip_level": "6",
    "skip_empty_files": "false",
    "rotate_size": "0",
    "rotate_interval": "0s",
    "sync_interval": "30s",
}


def read(*argv: str, environ: dict[str, str] | None = None) -> NsqToFileOptions:
    return load(NsqToFileOptions, "nsq_to_file", argv, environ or {})


def problems(*argv: str) -> tuple[str, ...]:
    with pytest.raises(OptionsError) as caught:
        read(*argv)
    return caught.value.problems


def test_nsq_flags_keep_their_names_and_defaults() -> None:
    settings = settings_of(NsqToFileOptions())
    assert {key: settings[key] for key in NSQ_DEFAULTS} == NSQ_DEFAULTS


@pytest.mark.parametrize(
    ("flags", "together", "of_each"),
    [
        ((), 2500, 200),
        (("--connections-per-nsqd=2",), 5000, 200),
        (("--max-in-flight=100",), 100, 0),
        (("--max-in-flight=100", "--connections-per-nsqd=2"), 100, 0),
    ],
)
def test_how_much_may_be_in_flight(flags: tuple[str, ...], together: int, of_each: int) -> None:
    consumer = read("--topic=t", "--nsqd-tcp-address=127.0.0.1:1", *flags).consumer()
    assert (consumer.max_in_flight, consumer.max_in_flight_per_nsqd) == (together, of_each)


def test_every_default_is_what_the_class_itself_has() -> None:
    options = NsqToFileOptions()
    for made in options_of(NsqToFileOptions):
        if made.default is not None:
            assert getattr(options, made.name) == made.kind.parse(made.default)


def test_without_flags_nsq_words_tell_what_is_missing() -> None:
    assert problems() == (
        "--nsqd-tcp-address or --lookupd-http-address required.",
        "--topic or --topic-pattern required",
        "--lookupd-http-address must be specified when no --topic specified",
    )


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--log-level=loud"], "--log-level is invalid"),
        (["--channel="], "--channel is required"),
        (
            ["--http-client-connect-timeout=0s"],
            "--http-client-connect-timeout should be positive",
        ),
        (
            ["--http-client-request-timeout=-1s"],
            "--http-client-request-timeout should be positive",
        ),
        (["--sync-interval=0"], "--sync-interval should be positive"),
        (["--topic-refresh=0s"], "--topic-refresh should be positive"),
        (
            ["--lookupd-http-address=a:4161"],
            "use --nsqd-tcp-address or --lookupd-http-address not both",
        ),
        (["--gzip-level=0"], "invalid --gzip-level value (0), should be 1-9"),
        (["--gzip-level=10"], "invalid --gzip-level value (10), should be 1-9"),
        (["--zstd-level=20"], "invalid --zstd-level value (20), should be 1-19"),
        (["--gzip", "--compress=zstd"], "--gzip contradicts --compress zstd"),
        (["--gzip", "--compress=none"], "--gzip contradicts --compress none"),
        (
            ["--compress=zip"],
            'invalid value "zip" for --compress: should be one of none, gzip, zstd',
        ),
        (["--topic=a b"], "invalid topic name"),
        (["--channel=a/b"], "invalid channel name"),
        (["--topic-pattern=("], "not a regular expression"),
        (["--topic-pattern=x"], "leave no --topic"),
        (["--max-in-flight=0"], "should be at least 1"),
        (["--consumer-opt=msg_timeot,5s"], "invalid option msg_timeot, did you mean msg_timeout?"),
        (
            ["--consumer-opt=auth_secrt=hunter2"],
            "invalid option auth_secrt, did you mean auth_secret?",
        ),
        (
            ["--consumer-opt=msg_timeout,5"],
            "failed to coerce option msg_timeout (5) - missing unit",
        ),
        (["--consumer-opt=read_timeout,5ms"], "invalid read_timeout ! 5ms < 100ms"),
        (["--consumer-opt=max_attempts,5"], "cannot be set here: it has no effect"),
        (["--consumer-opt=max_backoff_duration,5s"], "cannot be set here: it has no effect"),
        (
            ["--consumer-opt=lookupd_connect_timeout,5s"],
            "cannot be set here: use --http-client-connect-timeout",
        ),
        (["--consumer-opt=max_in_flight,5"], "cannot be set here: use --max-in-flight"),
        (["a", "b"], "unknown arguments: [a b]"),
        (["--filename-format="], "--filename-format is required"),
        (["--filename-format=../x"], "--filename-format: the file name '../x' leads out"),
        (["--filename-format=/x"], "--filename-format: the file name '/x' is absolute"),
        (["--filename-format=<TOPIC>/"], "--filename-format: the file name 'topic/' is empty"),
        (["--datetime-format=/../%H"], "leads out of the output directory"),
        (
            ["--watermark", "--host-identifier=a/b", "--filename-format=<TOPIC>"],
            "--watermark: a --host-identifier of 'a/b' cannot be in its name",
        ),
        (
            ["--filename-format=<HOST>/x", "--host-identifier=.."],
            "leads out of the output directory",
        ),
    ],
)
def test_each_mistake_is_told_alone_and_in_nsq_words(argv: list[str], problem: str) -> None:
    found = problems(*SOUND, *argv)
    assert len(found) == 1, found
    assert problem in found[0]


@pytest.mark.parametrize(
    "flag",
    [
        "--gzip",
        "--compress=zstd",
        "--rotate-size=1M",
        "--rotate-interval=1h",
        "--rotate-records=5",
        "--rotate-idle=1m",
        "--work-dir=/tmp/other",
    ],
)
def test_a_revision_is_needed_where_names_can_repeat(flag: str) -> None:
    name = "--filename-format=<TOPIC>.<DATETIME>.log"
    assert problems(*SOUND, name, flag) == (
        "missing <REV> in --filename-format when gzip, rotation, or work dir enabled",
    )
    assert "<REV>" in read(*SOUND, flag).filename_format
    assert "<REV>" not in read(*SOUND, name).filename_format


@pytest.mark.parametrize(
    ("flags", "compression", "level"),
    [
        ([], "none", 6),
        (["--gzip"], "gzip", 6),
        (["--gzip", "--compress=gzip", "--gzip-level=1"], "gzip", 1),
        (["--compress=zstd"], "zstd", 3),
    ],
)
def test_compression(flags: list[str], compression: str, level: int) -> None:
    options = read(*SOUND, *flags)
    assert (options.compression, options.compression_level) == (compression, level)


def test_folders_are_compared_as_paths() -> None:
    options = read(*SOUND, "--output-dir=/d", "--work-dir=/d/./")
    assert not options.has_work_dir
    assert options.effective_work_dir == Path("/d")
    options = read(*SOUND, "--output-dir=/d", "--work-dir=/w")
    assert options.effective_work_dir == Path("/w")


def test_topics_are_found_by_pattern() -> None:
    options = read(
        "--topic-pattern=log", "--topic-exclude=^tmp", "--lookupd-http-address=http://a:1/lookup"
    )
    assert options.is_discovering
    assert [options.wants_topic(name) for name in ("weblog", "tmplog", "web")] == [
        True,
        False,
        False,
    ]
    assert options.topic_pattern is not None
    assert options.topic_pattern.pattern == "log"


def test_settings_that_were_never_checked_do_not_pass_in_silence() -> None:
    options = NsqToFileOptions(consumer_opt=(NAME_VALUE.parse("msg_timeot,5s"),))
    with pytest.raises(OptionsError, match="invalid option msg_timeot"):
        options.consumer()


def test_the_consumer_gets_its_options() -> None:
    options = read(
        *SOUND,
        "--max-in-flight=2500",
        "--consumer-opt=msg-timeout,2m",
        "--consumer-opt=snappy",
        environ={"NSQ_TO_FILE_AUTH_SECRET": "hunter2"},
    )
    consumer = options.consumer()
    assert (consumer.max_in_flight, consumer.msg_timeout_s, consumer.snappy) == (2500, 120.0, True)
    assert consumer.max_attempts == 0
    assert consumer.auth_secret == "hunter2"
    assert consumer.user_agent.startswith("nsq_to_file/")
    assert "hunter2" not in repr(options) + repr(consumer)


def test_what_scripts_set_because_nsq_needs_it_is_taken_where_it_is_so_anyway() -> None:
    assert read(*SOUND, "--consumer-opt=max_attempts,0").consumer().max_attempts == 0


def test_times_of_nsqlookupd_reach_who_asks_it() -> None:
    options = read(*SOUND, "--http-client-connect-timeout=3s", "--http-client-request-timeout=4s")
    assert options.topic_lookup().connect_timeout_s == 3
    assert options.topic_lookup().lookupd_poll_timeout_s == 4
    assert options.consumer().lookup().connect_timeout_s == 3


def test_formats_and_compressions_are_those_of_the_archive() -> None:
    assert isinstance(RECORD_FORMAT, Choice)
    assert isinstance(COMPRESSION, Choice)
    assert set(RECORD_FORMAT.words) == set(formats.RECORD_FORMATS)
    assert set(COMPRESSION.words) == set(formats.COMPRESSIONS)
    assert formats.COMPRESSIONS["zstd"].default_level == read(*SOUND).zstd_level
    assert formats.COMPRESSIONS["gzip"].default_level == read(*SOUND).gzip_level
