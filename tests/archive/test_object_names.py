"""Keys of objects: what a format becomes, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from nsqtools.archive.destination import FileFacts
from nsqtools.archive.object_names import (
    KEY_BYTES_MAX,
    KEY_FORMAT,
    ROOM_BYTES,
    ObjectNaming,
    TopicObjectNaming,
    fixed_prefix,
    is_open,
    name_when_complete,
)
from nsqtools.errors import ArchiveError

NOW_S = datetime(2026, 3, 9, 5, 7, 8, tzinfo=UTC).timestamp()
FIRST_NS = 1_773_032_400_123_456_789  # 2026-03-09T05:00:00.123
LAST_NS = 1_773_032_700_999_999_999


def keys(
    key_format: str = KEY_FORMAT,
    *,
    topic: str = "clicks",
    channel: str = "archive",
    host: str = "host",
    record_format: str = "lines",
    compression: str = "zstd",
) -> TopicObjectNaming:
    naming = ObjectNaming(host=host, record_format=record_format, key_format=key_format, pid=42)
    return naming.format_for(topic, compression, revision_needed=True, channel=channel)


def facts(first_ns: int | None = FIRST_NS, last_ns: int | None = LAST_NS) -> FileFacts:
    return FileFacts(size_bytes=1, records=1, first_ts_ns=first_ns, last_ts_ns=last_ns)


def key_of(named: TopicObjectNaming, revision: int = 0, now_s: float = NOW_S) -> str:
    return name_when_complete(named.stem(now_s), facts(), now_s)(revision)


def test_the_default_sorts_by_time_and_says_what_is_in_it() -> None:
    named = keys()
    assert key_of(named) == (
        "clicks/dt=2026-03-09/hour=05/"
        "clicks.host.20260309T050000123Z-20260309T050500999Z.000000.log.zst"
    )


def test_every_token_is_filled_in() -> None:
    named = keys("<TOPIC>|<CHANNEL>|<HOST>|<PID>|<FIRST>|<LAST>|<REV>|<EXT>")
    assert key_of(named, 7) == (
        "clicks|archive|host|42|20260309T050000123Z|20260309T050500999Z|000007|log.zst"
    )


@pytest.mark.parametrize(
    ("record_format", "compression", "extension"),
    [
        ("lines", "none", "log"),
        ("jsonl", "gzip", "jsonl.gz"),
        ("framed", "zstd", "nsq.zst"),
        ("framed", "none", "nsq"),
    ],
)
def test_the_extension_tells_format_and_compression(
    record_format: str, compression: str, extension: str
) -> None:
    named = keys("<REV>.<EXT>", record_format=record_format, compression=compression)
    assert key_of(named) == f"000000.{extension}"


def test_times_are_utc_and_two_percents_are_one() -> None:
    assert key_of(keys("%Y/%j %H:%M:%S %Z 100%%/%%Y.<REV>")) == (
        "2026/068 05:07:08 UTC 100%/%Y.000000"
    )


@pytest.mark.parametrize("unknown", ["<DATETIME>", "<SHORT_HOST><REVISION>", "<ID>"])
def test_an_unknown_token_is_refused(unknown: str) -> None:
    with pytest.raises(ArchiveError, match=r"--key-format: <.* is not known"):
        keys(f"{unknown}.<REV>")


def test_without_a_revision_something_would_be_replaced() -> None:
    with pytest.raises(ArchiveError, match="missing <REV>"):
        keys("<TOPIC>.<FIRST>.<EXT>")


@pytest.mark.parametrize("host", ["<TOPIC>", "a<b", "tab\there", "line\nbreak", "nul\0", "\udc80"])
def test_a_host_that_would_make_another_key_is_refused(host: str) -> None:
    with pytest.raises(ArchiveError, match="--host-identifier"):
        keys(host=host)


def test_what_a_host_holds_is_no_directive() -> None:
    assert key_of(keys("<HOST>.<REV>", host="100%Y")) == "100%Y.000000"


@pytest.mark.parametrize(
    "key_format",
    [
        "/a/<REV>",
        "a/../<REV>",
        "../<REV>",
        "<REV>/..",
        "a<REV>/",
        "<REV>\0",
        "<REV>\n",
        "\udc80<REV>",
    ],
)
def test_what_no_file_could_be_called_is_no_key(key_format: str) -> None:
    with pytest.raises(ArchiveError):
        keys(key_format).stem(NOW_S)


@pytest.mark.parametrize("topic", [".", ".."])
def test_a_topic_of_dots_is_no_way_to_another_folder(topic: str) -> None:
    quoted = topic.replace(".", "%2E")
    assert key_of(keys("<TOPIC>/<TOPIC>.<REV>", topic=topic)) == f"{quoted}/{topic}.000000"
    assert key_of(keys("<CHANNEL>/<REV>", channel=topic)) == f"{quoted}/000000"
    assert keys("<TOPIC>/%Y/<REV>", topic=topic).mark_folder == f"{quoted}/"


def test_a_key_has_room_for_what_stands_beside_it() -> None:
    longest = KEY_BYTES_MAX - ROOM_BYTES
    rest = longest - len("é".encode()) - len(".000000")
    assert len(key_of(keys(f"é{'x' * rest}.<REV>")).encode()) == longest
    with pytest.raises(ArchiveError, match="longer than"):
        keys(f"é{'x' * rest}x.<REV>").stem(NOW_S)


def test_the_length_is_that_of_the_whole_key() -> None:
    """Not of the format, which is shorter or longer than what becomes of it."""
    rest = KEY_BYTES_MAX - ROOM_BYTES - 2 * len("20260309T050000123Z") - len("000000")
    assert len(key_of(keys(f"<FIRST><LAST>{'x' * rest}<REV>"))) == KEY_BYTES_MAX - ROOM_BYTES
    with pytest.raises(ArchiveError, match="longer than"):
        keys(f"<FIRST><LAST>{'x' * rest}x<REV>").stem(NOW_S)


@pytest.mark.parametrize("name", ["a.<REV>.manifest.json", "a.<REV>.watermark.json"])
def test_a_key_is_not_that_of_what_stands_beside_another(name: str) -> None:
    with pytest.raises(ArchiveError, match="manifest or a watermark"):
        keys(name).stem(NOW_S)


def test_revisions_make_other_keys_that_sort() -> None:
    made = [key_of(keys(), revision) for revision in (0, 1, 10, 999_999)]
    assert made == sorted(set(made))


def test_a_file_without_times_has_that_of_its_creation() -> None:
    """`lines` that recovery completed: the same key each time."""
    stem = keys("<FIRST>-<LAST>.<REV>").stem(NOW_S)
    made = [name_when_complete(stem, facts(None, None), NOW_S)(0) for _ in range(2)]
    assert made == ["20260309T050708000Z-20260309T050708000Z.000000"] * 2
    assert name_when_complete(stem, facts(FIRST_NS, None), NOW_S)(0) == (
        "20260309T050000123Z-20260309T050708000Z.000000"
    )


@pytest.mark.parametrize("time_ns", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_any_time_of_nsq_makes_a_key_of_the_same_length(time_ns: int) -> None:
    made = name_when_complete("<FIRST>", facts(time_ns), NOW_S)(0)
    assert len(made) == len("20260309T050000123Z")


def test_a_stem_changes_with_its_hour() -> None:
    named = keys()
    end_s = datetime(2026, 3, 9, 6, tzinfo=UTC).timestamp()
    assert named.stem(NOW_S) == named.stem(end_s - 0.001) != named.stem(end_s)
    assert named.next_change(end_s - 0.001) == end_s
    assert keys("<TOPIC>.<REV>").next_change(NOW_S) is None


def test_a_working_name_is_another_one_each_time() -> None:
    named = keys()
    made = {named.working_name(named.stem(NOW_S), 0) for _ in range(100)}
    assert len(made) == 100
    assert all(name.startswith("clicks.") and name.endswith(".part") for name in made)


def test_a_claim_is_told_to_hold_an_open_name() -> None:
    assert is_open(keys("x.<REV>").stem(NOW_S))
    assert is_open("<FIRST>")
    assert is_open("<LAST>")
    assert not is_open(key_of(keys()))


@pytest.mark.parametrize(
    ("key_format", "prefix"),
    [
        (KEY_FORMAT, ""),
        ("logs/nsq/<TOPIC>/<REV>", "logs/nsq/"),
        ("logs/nsq-<TOPIC>/<REV>", "logs/"),
        ("logs/%Y/<REV>", "logs/"),
        ("x<REV>", ""),
    ],
)
def test_what_all_keys_begin_with(key_format: str, prefix: str) -> None:
    assert fixed_prefix(key_format) == prefix
    assert key_of(keys(key_format)).startswith(prefix)
