"""File names: NSQ's format, revisions, and names that must not be."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.archive.naming import (
    FILENAME_FORMAT,
    MISSING_REV,
    FileNaming,
    bump,
    check_name,
    first_free,
    host_identifier,
    needs_revision,
    path_of,
    problem_with,
)
from nsqtools.errors import ArchiveError

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC, a Tuesday


def name(
    filename_format: str,
    *,
    topic: str = "t",
    channel: str = "c",
    compression: str = "none",
    revision: int = 0,
    needed: bool = False,
    datetime_format: str = "%H",
) -> str:
    naming = FileNaming(
        host="h", filename_format=filename_format, datetime_format=datetime_format, utc=True, pid=9
    )
    topic_naming = naming.format_for(topic, compression, revision_needed=needed, channel=channel)
    return topic_naming.name(topic_naming.stem(NOW), revision)


@pytest.mark.parametrize(
    ("template", "host"),
    [
        ("", "web1"),
        ("<SHORT_HOST>", "web1"),
        ("<HOSTNAME>", "web1.example.org"),
        ("x-<SHORT_HOST>-<HOSTNAME>", "x-web1-web1.example.org"),
    ],
)
def test_host_identifier(template: str, host: str) -> None:
    assert host_identifier(template, "web1.example.org") == host


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (name(FILENAME_FORMAT), "t.h.22.log"),
        (name(FILENAME_FORMAT, revision=3), "t.h.22-000003.log"),
        (name(FILENAME_FORMAT, needed=True), "t.h-000000.22.log"),
        (name(FILENAME_FORMAT, needed=True, revision=12), "t.h-000012.22.log"),
        (name(FILENAME_FORMAT, needed=True, compression="gzip"), "t.h-000000.22.log.gz"),
        (name(FILENAME_FORMAT, needed=True, compression="zstd"), "t.h-000000.22.log.zst"),
        (name("<TOPIC><REV>.gz", needed=True, compression="gzip"), "t-000000.gz"),
        (name("<TOPIC>.<PID>", revision=1), "t.9-000001"),
        (name("<TOPIC>/<DATETIME>/x.log"), "t/22/x.log"),
        (name("<TOPIC>/x", topic=".."), "%2E%2E/x"),
        (name("<TOPIC>/x", topic="."), "%2E/x"),
        (name("<TOPIC>.x", topic=".."), "...x"),
        (name("<TOPIC>", topic="a#ephemeral"), "a#ephemeral"),
        (
            name("<TOPIC>/<CHANNEL><REV>.log", needed=True, channel="b#ephemeral"),
            "t/b#ephemeral-000000.log",
        ),
        (name("<CHANNEL>/x", channel=".."), "%2E%2E/x"),
        (name("<CHANNEL>", channel="."), "%2E"),
        (name("<TOPIC><CHANNEL>/x", topic=".", channel="."), "%2E%2E/x"),
        (name("<CHANNEL>.x", channel=".."), "...x"),
    ],
)
def test_names(made: str, expected: str) -> None:
    assert made == expected


@pytest.mark.parametrize(
    ("datetime_format", "expected"),
    [
        ("%Y-%m-%d_%H", "2023-11-14_22"),
        ("%y%j%M%S", "23318" + "1320"),
        ("%a %A %b %B %p %I %Z %z", "Tue Tuesday Nov November PM 10 UTC +0000"),
        ("%%H", "%H"),
        ("%Q%s%f%", "%Q%s%f%"),
        ("2006 15 Jan", "2006 15 Jan"),
    ],
)
def test_datetime_formats(datetime_format: str, expected: str) -> None:
    assert name("<DATETIME>", datetime_format=datetime_format) == expected


def test_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        naming = FileNaming(host="h", filename_format="<DATETIME>", datetime_format="%H:%M%z")
        topic_naming = naming.format_for("t", "none", revision_needed=False)
        stem = topic_naming.stem(NOW)
        assert topic_naming.name(stem, 0) == "03:58+0545"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("filename_format", "datetime_format", "step"),
    [
        ("<TOPIC>", "%H", None),
        ("<DATETIME>", "fixed%%", None),
        ("<DATETIME>", "%Y-%m-%d", 900),
        ("<DATETIME>", "%H%M", 60),
        ("<DATETIME>", "%X", 1),
    ],
)
def test_next_change(filename_format: str, datetime_format: str, step: int | None) -> None:
    naming = FileNaming(
        host="h", filename_format=filename_format, datetime_format=datetime_format
    ).format_for("t", "none", revision_needed=False)
    expected = None if step is None else NOW - NOW % step + step
    assert naming.next_change(NOW) == expected


def test_when_a_revision_is_needed() -> None:
    assert needs_revision(compression="gzip", rotated=False, separate_work_dir=False)
    assert needs_revision(compression="none", rotated=True, separate_work_dir=False)
    assert needs_revision(compression="none", rotated=False, separate_work_dir=True)
    assert not needs_revision(compression="none", rotated=False, separate_work_dir=False)
    assert problem_with("<TOPIC>", revision_needed=True) == MISSING_REV
    assert problem_with("<TOPIC>", revision_needed=False) is None
    assert problem_with("", revision_needed=False) == "--filename-format is required"


@pytest.mark.parametrize(
    "bad", ["", "/etc/passwd", "../x", "a/../../x", "a/..", "a\0b", "a/", "a/.", ".", "..", "/"]
)
def test_names_that_leave_the_directory(bad: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError):
        check_name(bad)
    with pytest.raises(ArchiveError):
        path_of(tmp_path, bad)


@pytest.mark.parametrize("channel", ["", "a/b", "../x", "a" * 65, "a b", "<HOST>"])
def test_channels_that_are_none(channel: str) -> None:
    """They are asked for only where they stand in the name."""
    with pytest.raises(ArchiveError, match="invalid channel name"):
        name("<TOPIC>.<CHANNEL>", channel=channel)
    assert name("<TOPIC>", channel=channel) == "t"


def test_names_that_are_too_long(tmp_path: Path) -> None:
    """The longest one leaves room for a revision and a manifest."""
    longest = "x" * 231
    assert name(longest) == longest
    (tmp_path / (name(longest, revision=1) + ".manifest.json")).touch()
    assert name("y" * 255 + "/x") == "y" * 255 + "/x"
    for bad in (longest + "x", "é" * 116, "y" * 256 + "/x"):
        with pytest.raises(ArchiveError, match="too long"):
            name(bad)


def test_a_name_of_a_manifest() -> None:
    with pytest.raises(ArchiveError, match="that of a manifest"):
        name("<TOPIC>.manifest.json")


@pytest.mark.parametrize("bad", ["<HOST>/x", "x/<HOST>"])
@pytest.mark.parametrize("host", ["..", "/etc", "a/../.."])
def test_a_host_that_leads_out(bad: str, host: str) -> None:
    naming = FileNaming(host=host, filename_format=bad)
    if bad == "x/<HOST>" and host == "/etc":
        return  # x//etc stays inside
    with pytest.raises(ArchiveError):
        naming.format_for("t", "none", revision_needed=False).stem(NOW)


@pytest.mark.parametrize("topic", ["", "a/b", "../x", "a" * 65, "a b"])
def test_topics_that_are_none(topic: str) -> None:
    with pytest.raises(ArchiveError, match="invalid topic name"):
        name("<TOPIC>", topic=topic)


def test_a_link_that_leads_out(tmp_path: Path) -> None:
    (tmp_path / "in" / "real").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "bad").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "good").symlink_to(tmp_path / "in" / "real")
    assert path_of(tmp_path / "in", "good/x") == tmp_path / "in" / "good" / "x"
    with pytest.raises(ArchiveError, match="leads out"):
        path_of(tmp_path / "in", "bad/x")


@given(taken=st.sets(st.integers(0, 300)), start=st.integers(0, 50))
def test_first_free_is_free(taken: set[int], start: int) -> None:
    assert first_free(start, taken.__contains__) not in taken


def test_first_free_asks_little() -> None:
    asked: list[int] = []

    def is_taken(revision: int) -> bool:
        asked.append(revision)
        return revision < 100_000

    assert first_free(0, is_taken) == 100_000
    assert len(asked) < 40


@pytest.mark.parametrize("step", [1, 2, 3])
def test_planted_names_hide_no_free_one(step: int) -> None:
    """A name at every place where doubling steps fall."""
    planted = {step * (2**power - 1) for power in range(30)} | {2**power for power in range(30)}
    asked: list[int] = []

    def is_taken(revision: int) -> bool:
        asked.append(revision)
        return revision in planted or revision < 2000

    planted |= {2000 + step * (2**power - 1) for power in range(25)}
    assert first_free(2000, is_taken) not in planted
    assert len(asked) < 700


def test_any_name_is_tried_before_giving_up() -> None:
    gallop = {2**power - 1 for power in range(30)}
    assert first_free(0, lambda revision: revision in gallop or revision < 5000) >= 5000
    with pytest.raises(ArchiveError, match="no free one"):
        first_free(0, lambda revision: True)


@pytest.mark.parametrize(
    ("given_name", "count", "expected"),
    [
        ("a-000004.log", 0, "a-000004.log"),
        ("a-000004.log", 2, "a-000006.log"),
        ("a-000004.2023-11-14.log.gz", 1, "a-000005.2023-11-14.log.gz"),
        ("d-000001/a.log", 1, "d-000001/a-000001.log"),
        ("a.log", 3, "a-000003.log"),
        ("a.log.zst", 3, "a-000003.log.zst"),
        ("a", 1, "a-000001"),
        ("b.c/a", 1, "b.c/a-000001"),
    ],
)
def test_bump(given_name: str, count: int, expected: str) -> None:
    assert bump(given_name, count) == expected
