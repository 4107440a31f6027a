"""Messages in the file of their publish time: which one that is, how long it stays open, and what a crash
or a full disk in between leaves."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.archive.failing_os import FailingOs
from tests.archive.helpers import NSQD, PAIRS, claims, close, finish, read_bodies, spec, visible
from tests.archive.test_killed import ACKNOWLEDGED, CALLS_MAX, at_calls, in_child

from nsqtools.archive.naming import FileNaming
from nsqtools.archive.partition import ByPublishTime, Periods
from nsqtools.archive.recovery import recover
from nsqtools.archive.rotation import RotationPolicy
from nsqtools.archive.writer import ArchiveWriter
from nsqtools.clock import ManualClock
from nsqtools.errors import StorageError
from nsqtools.wire.messages import Messages, PartedMessages, encode_payload

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from nsqtools.archive.naming import TopicNaming
    from nsqtools.archive.writer import ArchiveSpec

HOUR_S, DAY_S = 3600, 86400
# 2023-11-14 22:00:00 UTC.
TEN_S = 1_699_999_200
LATENESS_S = 300.0
MESSAGES = 6


def hourly(datetime_format: str = "%Y-%m-%d_%H", *, utc: bool = True) -> FileNaming:
    return FileNaming(
        host="host",
        filename_format="<TOPIC>.<DATETIME><REV>.log",
        datetime_format=datetime_format,
        utc=utc,
    )


def names(datetime_format: str = "%Y-%m-%d_%H", *, utc: bool = True) -> TopicNaming:
    naming = hourly(datetime_format, utc=utc)
    return naming.format_for("topic", "none", revision_needed=True)


def at(time_s: float, number: int, body: bytes | None = None, *, attempts: int = 1) -> bytes:
    body = b"%d" % number if body is None else body
    return encode_payload(int(time_s * 1e9), attempts, b"%016x" % number, body)


def one(time_s: float, number: int, *, attempts: int = 1) -> Messages:
    return Messages([at(time_s, number, attempts=attempts)], nsqd=NSQD)


def partitioned(folder: Path, *, open_files_max: int = 16, **more: object) -> ArchiveSpec:
    by = ByPublishTime(lateness_s=LATENESS_S, open_files_max=open_files_max)
    return replace(spec(folder, naming=hourly(), **more), partition=by)  # type: ignore[arg-type]


def archived(folder: Path) -> dict[str, list[bytes]]:
    """The bodies of each finished file, by its name."""
    found = {}
    for path in visible(folder):
        bodies, damage = read_bodies(path)
        assert damage is None
        found[path.name] = bodies
    return found


# Periods


@given(
    batches=st.lists(st.lists(st.integers(0, 5 * DAY_S), max_size=8), max_size=4),
    datetime_format=st.sampled_from(["%Y-%m-%d_%H", "%Y-%m-%d", "%H%M", "%S", "%%"]),
)
def test_each_message_goes_where_its_own_time_says(
    batches: list[list[int]], datetime_format: str
) -> None:
    naming = names(datetime_format)
    payloads = [[at(TEN_S + time_s, time_s) for time_s in times] for times in batches]
    pieces = Periods(naming).split([Messages(some, nsqd=NSQD) for some in payloads])
    expected: dict[str, list[bytes]] = {}
    for some, times in zip(payloads, batches, strict=True):
        for payload, time_s in zip(some, times, strict=True):
            expected.setdefault(naming.stem(TEN_S + time_s), []).append(payload)
    found = {
        piece.stem: [payload for part in piece.batches for payload in part.payloads]
        for piece in pieces
    }
    assert found == expected
    assert all(part.nsqd == NSQD for piece in pieces for part in piece.batches)


def test_what_is_all_of_one_period_is_not_copied() -> None:
    batch = Messages([at(TEN_S + 10, 1), at(TEN_S + 20, 2)], nsqd=NSQD)
    (piece,) = Periods(names()).split([batch])
    assert piece.batches[0] is batch


@pytest.mark.parametrize("time_ns", [0, 2**63 - 1, 2**64 - 1])
def test_any_time_that_nsqd_may_send_has_a_period(time_ns: int) -> None:
    periods = Periods(names())
    payload = time_ns.to_bytes(8, "big") + bytes(18)
    assert len(periods.split([Messages([payload])])) == 1
    end_s = periods.ends_at(time_ns)
    assert end_s is not None
    assert 0 < end_s - time_ns / 1e9 <= HOUR_S


@pytest.mark.parametrize(
    ("datetime_format", "ends_at"),
    [
        ("%Y-%m-%d_%H", TEN_S + HOUR_S),
        ("%Y-%m-%d", TEN_S + 2 * HOUR_S),
        ("%H%M", TEN_S + 60 + 60),
        ("%S", TEN_S + 100),
        ("%Y", 1_704_067_200),
        ("%H", TEN_S + HOUR_S),
        ("%%", None),
    ],
)
def test_when_a_period_ends(datetime_format: str, ends_at: float | None) -> None:
    assert Periods(names(datetime_format)).ends_at((TEN_S + 99) * 10**9) == ends_at


def test_a_day_ends_at_midnight_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on the day that has 25 hours."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        midnight_s = 1_698_530_400  # 2023-10-29 00:00 CEST
        ends_at = Periods(names("%Y-%m-%d", utc=False)).ends_at(midnight_s * 10**9)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert ends_at == midnight_s + 25 * HOUR_S


# Files


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_each_period_has_its_file(record_format: str, compression: str, tmp_path: Path) -> None:
    wanted = partitioned(tmp_path, record_format=record_format, compression=compression)
    writer = ArchiveWriter(wanted, clock=ManualClock(time_s=TEN_S + 10))
    mixed = [at(TEN_S - 5, 1), at(TEN_S + 5, 2), at(TEN_S - 4, 3)]
    done = writer.commit([Messages(mixed, nsqd=NSQD), one(TEN_S - 3, 4)])
    assert (done.messages, len(done.created)) == (4, 2)
    assert writer.commit([one(TEN_S + 6, 5)]).created == ()
    close(writer)
    suffix = {"none": "", "gzip": ".gz", "zstd": ".zst"}[compression]
    assert archived(tmp_path) == {
        f"topic.2023-11-14_21-000000.log{suffix}": [b"1", b"3", b"4"],
        f"topic.2023-11-14_22-000000.log{suffix}": [b"2", b"5"],
    }
    assert claims(tmp_path) == []


def test_a_file_stays_open_for_what_comes_late(tmp_path: Path) -> None:
    writer = ArchiveWriter(partitioned(tmp_path), clock=(clock := ManualClock(time_s=TEN_S)))
    writer.commit([one(TEN_S + 1, 1)])
    assert writer.next_tick == HOUR_S + LATENESS_S
    clock.jump(HOUR_S + LATENESS_S - 1)
    writer.commit([one(TEN_S + 2, 2), one(TEN_S + HOUR_S + 1, 3)])
    writer.tick()
    assert (len(writer.sealed), writer.next_tick) == (0, 1.0)
    clock.jump(1.0)
    writer.tick()
    assert [file.name for file in finish(writer)] == ["topic.2023-11-14_22-000000.log"]
    assert writer.commit([one(TEN_S + 3, 4)]).messages == 1, "too late is not lost"
    close(writer)
    assert archived(tmp_path) == {
        "topic.2023-11-14_22-000000.log": [b"1", b"2"],
        "topic.2023-11-14_22-000001.log": [b"4"],
        "topic.2023-11-14_23-000000.log": [b"3"],
    }


def test_a_period_that_was_over_when_its_file_was_opened(tmp_path: Path) -> None:
    """A backlog of last week: the file ends a while after it was opened, not at once."""
    writer = ArchiveWriter(
        partitioned(tmp_path), clock=(clock := ManualClock(time_s=TEN_S + 7 * DAY_S))
    )
    writer.commit([one(TEN_S, 1)])
    assert writer.next_tick == LATENESS_S
    clock.jump(LATENESS_S - 1)
    writer.commit([one(TEN_S, 2)])
    close(writer)
    assert archived(tmp_path) == {"topic.2023-11-14_22-000000.log": [b"1", b"2"]}


def test_a_clock_that_is_set_closes_nothing_early(tmp_path: Path) -> None:
    writer = ArchiveWriter(partitioned(tmp_path), clock=(clock := ManualClock(time_s=TEN_S)))
    writer.commit([one(TEN_S + 1, 1)])
    clock.set_time(TEN_S + DAY_S)
    writer.tick()
    assert (len(writer.sealed), writer.next_tick) == (0, HOUR_S + LATENESS_S)


def test_so_many_files_are_open_at_most(tmp_path: Path) -> None:
    """The one that waited longest for a message is finished."""
    writer = ArchiveWriter(
        partitioned(tmp_path, open_files_max=2), clock=ManualClock(time_s=TEN_S + DAY_S)
    )
    for number, hour in enumerate([0, 1, 0, 2]):
        writer.commit([one(TEN_S + hour * HOUR_S, number)])
    assert [file.name for file in finish(writer)] == ["topic.2023-11-14_23-000000.log"]
    assert len(visible(tmp_path)) == 3
    both = [one(TEN_S + hour * HOUR_S, 10 + hour) for hour in range(12)]
    with pytest.raises(StorageError, match="6 finished files wait to be published"):
        writer.commit(both)
    finish(writer)
    assert writer.commit(both).messages == 12
    finish(writer)
    close(writer)
    bodies = [body for found in archived(tmp_path).values() for body in found]
    assert Counter(bodies) == Counter([b"%d" % number for number in [0, 1, 2, 3, *range(10, 22)]])


def test_a_hup_and_the_end_finish_all_of_them(tmp_path: Path) -> None:
    wanted = partitioned(tmp_path, rotation=RotationPolicy(rotate_idle_s=60.0))
    writer = ArchiveWriter(wanted, clock=(clock := ManualClock(time_s=TEN_S + DAY_S)))
    writer.commit([one(TEN_S + hour * HOUR_S, hour) for hour in range(16)])
    writer.rotate()
    assert len(finish(writer)) == 16
    writer.commit([one(TEN_S + hour * HOUR_S, hour) for hour in range(3)])
    clock.jump(30.0)
    writer.commit([one(TEN_S, 9)])
    clock.jump(30.0)
    writer.tick()
    assert len(finish(writer)) == 2, "each has its own idle time"
    assert len(close(writer)) == 1


def test_the_oldest_file_is_known(tmp_path: Path) -> None:
    writer = ArchiveWriter(partitioned(tmp_path), clock=(clock := ManualClock(time_s=TEN_S)))
    oldest = [writer.oldest_unfinished_s]
    writer.commit([one(TEN_S, 1)])
    clock.jump(10.0)
    writer.commit([one(TEN_S - HOUR_S, 2)])
    writer.commit([one(TEN_S, 3)])
    oldest.append(writer.oldest_unfinished_s)
    writer.close()
    oldest.append(writer.oldest_unfinished_s)
    finish(writer)
    oldest.append(writer.oldest_unfinished_s)
    assert oldest == [None, TEN_S, TEN_S, None]


# What fails


@pytest.mark.parametrize("keys_max", [0, 10])
def test_a_delivery_that_is_made_again_after_some_files_took_theirs(
    keys_max: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever call fails, with and without a look at what came before: each message once."""
    delivery = [one(TEN_S + hour * HOUR_S, hour) for hour in range(4)]
    for fail_at in range(CALLS_MAX):
        folder = tmp_path / f"{fail_at}"
        folder.mkdir()
        writer = ArchiveWriter(replace(partitioned(folder), keys_max=keys_max))
        if writer.once is not None:
            writer.once.open()
        failing = FailingOs(fail_at)
        with monkeypatch.context() as patched:
            failing.install(patched)
            try:
                made = writer.commit(delivery)
            except StorageError:
                made = writer.commit([*delivery, one(TEN_S, 4)])
        assert (made.messages, made.duplicates) in ((4, 0), (5, 0))
        assert len(made.created) == 4
        close(writer)
        bodies = [body for found in archived(folder).values() for body in found]
        assert sorted(bodies) == [b"%d" % number for number in range(made.messages)]
        if not failing.failed:
            break
    assert fail_at > 40


def test_what_was_made_of_one_message_stays_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Siblings have one key: of a delivery that is made again they are all there, or none."""
    parted = PartedMessages(
        [at(TEN_S, 1, b"a"), at(TEN_S, 1, b"b"), at(TEN_S + HOUR_S, 2, b"c")], [0, 1, 0], nsqd=NSQD
    )
    writer = ArchiveWriter(partitioned(tmp_path))
    writer.commit([one(TEN_S, 8), one(TEN_S + HOUR_S, 9)])
    with monkeypatch.context() as patched:
        FailingOs(1, only={"fdatasync"}).install(patched)
        with pytest.raises(StorageError):
            writer.commit([parted])
    assert writer.commit([parted]).messages == 3
    close(writer)
    assert archived(tmp_path) == {
        "topic.2023-11-14_22-000000.log": [b"8", b"a", b"b"],
        "topic.2023-11-14_23-000000.log": [b"9", b"c"],
    }


def archive(wanted: ArchiveSpec, delivered: Sequence[Messages], pipe: int) -> None:
    writer = ArchiveWriter(wanted)
    assert writer.once is not None
    writer.once.open()
    for number in range(0, len(delivered), 2):
        writer.commit(delivered[number : number + 2])
        os.write(pipe, ACKNOWLEDGED.pack(number + 2))
        writer.finish()
    close(writer)
    writer.release()


@pytest.mark.slow
@at_calls
@pytest.mark.parametrize(
    ("record_format", "compression"),
    [pytest.param("lines", "none", marks=pytest.mark.soak), ("framed", "zstd")],
)
def test_killed_at_calls(record_format: str, compression: str, step: int, tmp_path: Path) -> None:
    """Two hours in each commit, at most two files open: lost 0, twice 0."""
    for kill_at in range(0, CALLS_MAX, step):
        folder = tmp_path / f"{kill_at}"
        folder.mkdir()
        by = ByPublishTime(lateness_s=LATENESS_S, open_files_max=2)
        base = spec(folder, record_format, compression, naming=hourly())
        wanted = replace(base, partition=by, keys_max=10)
        first = [one(TEN_S + number % 3 * HOUR_S, number) for number in range(MESSAGES)]
        done, acknowledged = in_child(kill_at, "links", partial(archive, wanted, first))
        assert not any(result.failed for result in recover(folder))
        # nsqd delivers again what it was not told of, or was not heard of in time.
        again = [
            one(TEN_S + number % 3 * HOUR_S, number, attempts=2)
            for number in range(max(0, acknowledged - 2), MESSAGES)
        ]
        ended, _ = in_child(CALLS_MAX, "links", partial(archive, wanted, again))
        assert ended
        bodies = [body for found in archived(folder).values() for body in found]
        assert sorted(bodies) == [b"%d" % number for number in range(MESSAGES)]
        if done:
            break
    assert kill_at > 100
