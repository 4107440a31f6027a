from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.archive.failing_os import FailingOs
from tests.support.disks import at_once, open_files

from nsqtools import durable
from nsqtools.broker import files as module
from nsqtools.broker import segment as segment_module
from nsqtools.broker.block import Block, build_block
from nsqtools.broker.log import DiskLog
from nsqtools.broker.memory import NUMBERS_PER_MS_BITS, Memory, MemoryBudget, MemoryLog, Room
from nsqtools.broker.segment import HEADER_SIZE_BYTES, Segment
from nsqtools.errors import StorageError
from nsqtools.wire.bodies import measured
from nsqtools.wire.frames import FrameDecoder
from nsqtools.wire.messages import Messages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nsqtools.broker.log import TopicLog

NOW_NS = 1_700_000_000_000_000_000
NOW_MS = 1_700_000_000_000


def open_log(
    folder: Path, *, segment_bytes: int = 1 << 20, memory: int = 5, ms: int = 0
) -> DiskLog:
    return DiskLog(
        folder,
        memory=Memory(memory, MemoryBudget(1 << 20)),
        segment_size_max_bytes=segment_bytes,
        now_ms=NOW_MS + ms,
        files=open_files(),
        defer=at_once,
    )


def add(log: TopicLog, *bodies: bytes) -> Block:
    block = build_block(log.end, measured(list(bodies)), NOW_NS)
    log.append(block)
    return block


def finish(log: DiskLog) -> None:
    log.close()
    log.sync()


def texts(block: Block) -> list[bytes]:
    (messages,) = FrameDecoder().receive(block.frames)
    assert isinstance(messages, Messages)
    return messages.bodies


def everything(log: TopicLog, number: int = 0) -> list[bytes]:
    """What a reader that follows the log gets, from memory where it is, from disk else."""
    found: list[bytes] = []
    number = log.following(number)
    while number < log.end:
        block = log.in_memory(number) or log.read(number)
        if block is None:
            break
        found += texts(block)[max(0, number - block.first) :]
        number = block.end
    return found


@pytest.fixture
def log(tmp_path: Path) -> Iterator[DiskLog]:
    made = open_log(tmp_path)
    yield made
    made.close()


def test_numbers_follow_the_clock_and_are_never_used_twice(tmp_path: Path) -> None:
    first = open_log(tmp_path)
    assert first.end == NOW_MS << NUMBERS_PER_MS_BITS
    add(first, b"1", b"2")
    end = first.end
    first.close()
    # The clock was put back by an hour.
    second = open_log(tmp_path, ms=-3_600_000)
    assert second.end == end
    add(second, b"3")
    second.close()
    third = open_log(tmp_path, ms=5)
    assert third.end == NOW_MS + 5 << NUMBERS_PER_MS_BITS
    assert everything(third) == [b"1", b"2", b"3"]
    assert third.count(third.start, third.end) == 3
    third.close()


@given(
    st.lists(st.lists(st.binary(max_size=30), min_size=1, max_size=8), min_size=1, max_size=30),
    st.integers(100, 2000),
    st.integers(1, 20),
    st.data(),
)
def test_memory_and_disk_say_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[list[bytes]],
    segment_bytes: int,
    memory: int,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("log")
    written = [body for batch in batches for body in batch]
    log = open_log(folder, segment_bytes=segment_bytes, memory=memory)
    start = log.end
    for batch in batches:
        add(log, *batch)
    assert everything(log) == written
    at = data.draw(st.integers(0, len(written)))
    assert everything(log, start + at) == written[at:]
    assert log.count(start + at, log.end) == len(written) - at
    finish(log)
    again = open_log(folder, segment_bytes=segment_bytes, memory=memory, ms=1)
    assert everything(again) == written
    assert everything(again, start + at) == written[at:]
    assert again.count(start + at, again.end) == len(written) - at
    finish(again)


def test_a_block_is_never_split_between_readers(log: DiskLog) -> None:
    block = add(log, *[b"%d" % number for number in range(10)])
    for number in range(block.first, block.end):
        assert log.in_memory(number) is block
        found = log.read(number)
        assert found is not None
        assert (found.first, found.frames) == (block.first, block.frames)


def test_memory_is_bounded_but_keeps_the_newest_block(log: DiskLog) -> None:
    first = add(log, b"1", b"2", b"3")
    second = add(log, b"4", b"5")
    assert [first.next] == [second]
    third = add(log, *[b"%d" % number for number in range(6, 26)])
    assert log.memory_start == third.first
    assert [first.next, second.next] == [None, None]
    assert log.in_memory(first.first) is None
    assert everything(log) == [b"%d" % number for number in range(1, 26)]


def test_memory_is_bounded_in_bytes() -> None:
    blocks = [build_block(number, measured([b"x" * 60]), NOW_NS) for number in range(5)]
    memory = Memory(100, MemoryBudget(2 * blocks[0].cost_bytes))
    for block in blocks:
        memory.append(block)
    assert [memory.first] == [3]
    assert [memory.find(number) for number in range(5)] == [None, None, None, *blocks[3:]]
    memory.drop_before(5)
    assert memory.first is None


def test_the_oldest_block_of_any_topic_makes_room() -> None:
    blocks = [build_block(number, measured([b"x" * 66]), NOW_NS) for number in range(9)]
    budget = MemoryBudget(4 * blocks[0].cost_bytes)
    one, other = Memory(100, budget), Memory(100, budget)
    for block in blocks[:4]:
        one.append(block)
    assert [one.first] == [0]
    for block in blocks[4:6]:
        other.append(block)
    assert (one.first, other.first) == (2, 4)
    assert [block.next for block in blocks[:3]] == [None, None, blocks[3]]
    one.drop_before(4)
    for block in blocks[6:8]:
        other.append(block)
    assert (one.first, other.first) == (None, 4)
    # One that fills the budget by itself stays, and is alone.
    one.append(build_block(9, measured([b"x" * 5000]), NOW_NS))
    assert (one.first, other.first) == (9, None)
    other.append(blocks[8])
    assert (one.first, other.first) == (None, 8)


def test_what_is_dropped_is_let_go() -> None:
    memory = Memory(100, MemoryBudget(1))
    gone = b"x" * 10_000
    count = sys.getrefcount(gone)
    memory.append(Block(0, gone, [0, len(gone)], 0))
    assert sys.getrefcount(gone) == count + 1
    memory.append(build_block(1, measured([b"next"]), NOW_NS))
    assert sys.getrefcount(gone) == count


def test_segments_roll_and_go_when_they_are_not_needed(tmp_path: Path) -> None:
    log = open_log(tmp_path, segment_bytes=200)
    blocks = [add(log, b"x" * 100) for _ in range(6)]
    assert len(list(tmp_path.glob("*.log"))) == 3
    log.sync()
    # Sealed segments have an index; the one that is written has none.
    assert len(list(tmp_path.glob("*.index"))) == 2
    log.trim(blocks[1].end)
    assert len(list(tmp_path.glob("*.log"))) == 2
    log.trim(blocks[3].end - 1)
    assert len(list(tmp_path.glob("*.log"))) == 2
    assert log.start == blocks[2].first
    log.trim(log.end)
    # The written one stays.
    assert [path.suffix for path in tmp_path.iterdir()] == [".log"]
    assert log.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    finish(log)


def test_a_torn_tail_is_cut_to_the_last_whole_block_at_every_offset(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "whole").mkdir()
    log = open_log(tmp_path / "whole")
    ends = [HEADER_SIZE_BYTES]
    for body in (b"one", b"three", b"two"):
        add(log, body)
        ends.append(log.size_bytes)
    first = log.start
    (path,) = (tmp_path / "whole").glob("*.log")
    raw = path.read_bytes()
    for size in range(len(raw) + 1):
        folder = tmp_path / f"torn-{size}"
        folder.mkdir()
        (folder / path.name).write_bytes(raw[:size])
        caplog.clear()
        torn = open_log(folder, ms=1)
        whole = sum(end <= size for end in ends[1:])
        assert everything(torn) == [b"one", b"three", b"two"][:whole]
        cut = size - ends[whole] if size > HEADER_SIZE_BYTES else 0
        assert f"cut_bytes={cut} " in caplog.text or not cut
        bad = list(folder.glob("*.bad"))
        assert [one.read_bytes() for one in bad] == ([raw[ends[whole] : size]] if cut else [])
        block = add(torn, b"behind")
        assert block.first > first + 3
        assert everything(torn)[-1] == b"behind"
        torn.close()


def test_a_torn_tail_is_left_where_there_is_no_room_to_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, _data: bytes) -> None:
        raise StorageError("write", path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    log = open_log(tmp_path)
    add(log, b"whole")
    (path,) = tmp_path.glob("*.log")
    with path.open("ab") as file:
        file.write(b"torn")
    for ms in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(durable, "replace_file", refuse)
            again = open_log(tmp_path, ms=ms)
            add(again, b"new")
            finish(again)
        assert "no room to keep what is cut" in caplog.text
        assert path.read_bytes().endswith(b"torn")
    last = open_log(tmp_path, ms=3)
    assert everything(last) == [b"whole", b"new", b"new"]
    assert not path.read_bytes().endswith(b"torn")
    assert path.with_suffix(".log.bad").read_bytes() == b"torn"
    finish(last)


def _damage(path: Path, needle: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[raw.index(needle)] ^= 1
    path.write_bytes(raw)


def test_damage_in_a_sealed_segment_costs_its_rest_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(tmp_path, segment_bytes=500)
    for number in range(12):
        add(log, b"body %02d " % number + b"x" * 100)
    finish(log)
    paths = sorted(tmp_path.glob("*.log"))
    assert len(paths) == 4
    _damage(paths[1], b"body 04")
    again = open_log(tmp_path, ms=1)
    found = [int(text[5:7]) for text in everything(again)]
    assert found == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]
    (line,) = [line for line in caplog.messages if "given up" in line]
    assert f"path={paths[1]}" in line
    assert "reason='checksum mismatch' messages=2" in line
    finish(again)


def test_damage_found_while_scanning_is_kept_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(tmp_path, segment_bytes=500)
    for number in range(6):
        add(log, b"body %02d " % number + b"x" * 100)
    finish(log)
    paths = sorted(tmp_path.glob("*.log"))
    for index in tmp_path.glob("*.index"):
        index.unlink()
    _damage(paths[0], b"body 01")
    again = open_log(tmp_path, ms=1)
    assert [int(text[5:7]) for text in everything(again)] == [0, 3, 4, 5]
    assert "is cut to its last whole block" in caplog.text
    assert b"body 02" in (tmp_path / f"{paths[0].name}.bad").read_bytes()
    finish(again)


@pytest.mark.parametrize("damage", ["missing", "torn", "foreign", "of another size"])
def test_an_index_is_only_a_help(tmp_path: Path, damage: str) -> None:
    log = open_log(tmp_path, segment_bytes=500)
    written = [b"%02d" % number * 50 for number in range(12)]
    for body in written:
        add(log, body)
    finish(log)
    for index in tmp_path.glob("*.index"):
        raw = index.read_bytes()
        index.unlink()
        if damage == "torn":
            index.write_bytes(raw[:-1])
        elif damage == "foreign":
            index.write_bytes(os.urandom(len(raw)))
        elif damage == "of another size":
            path = index.with_suffix(".log")
            other = Segment(path=path, first=1, ordinal=0, end=9, size_bytes=77)
            index.write_bytes(other.index_bytes())
    again = open_log(tmp_path, ms=1)
    assert everything(again) == written
    finish(again)


def test_a_segment_without_a_header_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "0" * 20
    (tmp_path / f"{name}.log").write_bytes(b"this is no segment of a log at all, is it?")
    log = open_log(tmp_path)
    assert everything(log) == []
    assert (tmp_path / f"{name}.bad").read_bytes().startswith(b"this is no")
    assert "is set aside" in caplog.text
    finish(log)


def test_only_its_own_segments_are_a_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = open_log(tmp_path, segment_bytes=100)
    for body in (b"one" * 50, b"two" * 50, b"three" * 50):
        add(log, body)
    written, end = everything(log), log.end
    finish(log)
    first, *_, last = sorted(tmp_path.glob("*.log"))
    (tmp_path / "copy.log").write_bytes(first.read_bytes())
    (tmp_path / "my.log").write_bytes(b"short")
    copy = last.with_stem(f"{int(last.stem) + 1:020d}")
    copy.write_bytes(first.read_bytes())
    again = open_log(tmp_path, ms=1)
    assert everything(again) == written
    assert again.end >= end
    assert (tmp_path / "copy.log").exists()
    assert (tmp_path / "my.log").read_bytes() == b"short"
    assert not copy.exists()
    assert copy.with_suffix(".bad").exists()
    assert caplog.text.count("is left alone") == 2
    finish(again)


def test_a_segment_that_somebody_took_away_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(tmp_path, segment_bytes=100)
    for body in (b"one" * 50, b"two" * 50, b"three" * 50):
        add(log, body)
    finish(log)
    sorted(tmp_path.glob("*.log"))[1].unlink()
    again = open_log(tmp_path, ms=1)
    assert everything(again) == [b"one" * 50, b"three" * 50]
    assert again.count(again.start, again.end) == 2
    assert "messages are missing from a log" in caplog.text
    assert "messages=1" in caplog.text
    finish(again)


def test_what_is_looked_for_in_a_segment_that_is_gone_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(tmp_path, segment_bytes=1000, memory=1)
    blocks = [add(log, b"%d" % number) for number in range(60)]
    log.sync()
    _, gone, *_, last = log.segments
    gone.path.unlink()
    found = log.find([block.first for block in blocks], 1 << 20)
    assert found is not None
    there = {block.first: block.frames for block in blocks if block not in gone_from(gone, blocks)}
    assert {number: frame for number, frame in found.frames.items() if frame} == there
    assert len(found.frames) == 60
    assert caplog.text.count("is given up") == 1
    assert f"messages={gone.end - gone.first}" in caplog.text
    behind = log.find([last.end, last.end + 1], 1 << 20)
    assert behind is not None
    assert behind.frames == {last.end: None, last.end + 1: None}
    log.close()


def gone_from(segment: Segment, blocks: list[Block]) -> list[Block]:
    return [block for block in blocks if segment.first <= block.first < segment.end]


def test_what_was_cleared_behind_a_straggler_is_no_loss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(tmp_path, segment_bytes=100)
    first, second, third, last = [add(log, body * 150) for body in (b"1", b"2", b"3", b"4")]
    log.sync()
    assert not log.clear([first.first, second.first, third.first, last.first], log.end)
    assert not log.clear([first.first], second.first)
    size_bytes = log.size_bytes
    for _ in range(3):
        assert log.clear([first.first], log.end)
    assert not log.clear([first.first], log.end)
    assert log.size_bytes < size_bytes / 2
    add(log, b"new")
    finish(log)
    for ms in (1, 2):
        again = open_log(tmp_path, segment_bytes=100, ms=ms)
        assert everything(again) == [b"1" * 150, b"new"]
        assert again.count(again.start, again.end) == 2
        assert again.count(again.following(first.end), again.end) == 1
        finish(again)
    assert not caplog.text
    again = open_log(tmp_path, ms=3)
    again.trim(first.end)
    add(again, b"newer")
    finish(again)
    finish(open_log(tmp_path, ms=4))
    assert len(list(tmp_path.glob("*.log"))) == 2
    assert not caplog.text


def test_what_is_being_sealed_is_not_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its index would say that it holds what it does not."""
    log = open_log(tmp_path, segment_bytes=100)
    first, second = add(log, b"1" * 150), add(log, b"2" * 150)
    add(log, b"3")
    index_bytes = Segment.index_bytes

    def clear_and_index(segment: Segment) -> bytes:
        log.clear([first.first], second.end)  # the loop's turn
        return index_bytes(segment)

    with monkeypatch.context() as patch:
        patch.setattr(Segment, "index_bytes", clear_and_index)
        log.sync()
    assert log.clear([first.first], second.end)
    finish(log)
    again = open_log(tmp_path, ms=1)
    assert everything(again) == [b"1" * 150, b"3"]
    assert again.count(again.start, again.end) == 2
    finish(again)


def test_what_is_behind_a_gap_that_is_known_is_not_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Over several runs; but what somebody takes away of it is."""
    log = open_log(tmp_path, segment_bytes=100)
    first, _, _ = [add(log, body * 150) for body in (b"1", b"2", b"3")]
    log.sync()
    assert log.clear([first.first], log.end)
    expected = [b"1" * 150, b"3" * 150]
    for ms in (1, 2, 3):
        expected.append(b"new" * 50)
        add(log, expected[-1])
        finish(log)
        log = open_log(tmp_path, segment_bytes=100, ms=ms)
        assert everything(log) == expected
        assert log.count(log.start, log.end) == len(expected)
    finish(log)
    assert not caplog.text
    sorted(tmp_path.glob("*.log"))[-2].unlink()
    finish(open_log(tmp_path, ms=4))
    assert caplog.text.count("messages are missing from a log") == 1
    assert "messages=1" in caplog.text


def test_a_pipe_in_the_place_of_a_segment_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"{0:020d}.log")
    with pytest.raises(StorageError, match="not a regular file"):
        open_log(tmp_path)


class BrokenDisk:
    """The module `os`; calls by the names in `broken` fail, writev after half of the bytes."""

    def __init__(self, *broken: str) -> None:
        self.broken = broken

    def __getattr__(self, name: str) -> Any:
        return self._fail if name in self.broken else getattr(os, name)

    def writev(self, fd: int, parts: list[bytes]) -> int:
        if "writev" in self.broken:
            return os.write(fd, b"".join(parts)[: sum(map(len, parts)) // 2])
        return os.writev(fd, parts)

    def _fail(self, *_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", [("writev", "write"), ("writev", "write", "ftruncate")])
def test_a_write_that_fails_leaves_the_log_as_it_was(
    log: DiskLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: tuple[str, ...]
) -> None:
    add(log, b"before")
    end, size_bytes = log.end, log.size_bytes
    with monkeypatch.context() as patch:
        patch.setattr(module, "os", BrokenDisk(*broken))
        for _ in range(2):
            with pytest.raises(StorageError) as caught:
                add(log, b"lost" * 10)
            assert caught.value.errno == errno.ENOSPC
    assert (log.end, log.size_bytes) == (end, size_bytes)
    add(log, b"behind")
    finish(log)
    again = open_log(tmp_path, ms=1)
    assert everything(again) == [b"before", b"behind"]
    finish(again)


@pytest.mark.parametrize("broken", [("open",), ("writev", "write", "unlink")])
def test_a_segment_that_cannot_be_begun_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: tuple[str, ...]
) -> None:
    log = open_log(tmp_path, segment_bytes=100)
    add(log, b"x" * 100)
    with monkeypatch.context() as patch:
        patch.setattr(module, "os", BrokenDisk(*broken))
        with pytest.raises(StorageError, match="No space left"):
            add(log, b"refused")
    add(log, b"y")
    assert everything(log) == [b"x" * 100, b"y"]
    assert log.count(log.start, log.end) == 2
    finish(log)


def test_a_disk_that_refuses_to_read_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(tmp_path, memory=1)
    number = log.end
    add(log, b"1", b"2")
    add(log, b"3")
    with monkeypatch.context() as patch:
        patch.setattr(segment_module, "os", BrokenDisk("pread"))
        with pytest.raises(StorageError, match="read"):
            log.read(number)
    assert everything(log) == [b"1", b"2", b"3"]
    finish(log)


def test_a_log_in_memory_only() -> None:
    log = MemoryLog(NOW_MS, Room(1 << 30))
    start = log.end
    blocks = [add(log, b"1", b"2"), add(log, b"3")]
    assert everything(log, start) == [b"1", b"2", b"3"]
    log.trim(blocks[0].end)
    assert log.start == blocks[1].first
    assert log.in_memory(start) is None
    assert log.count(log.start, log.end) == 1


def test_what_was_synced_last_can_go_while_the_next_segment_is_synced(tmp_path: Path) -> None:
    """Everything in it was acknowledged; then the sync of what is behind it fails."""
    log = open_log(tmp_path, segment_bytes=64)
    good = add(log, b"a" * 100)
    log.sync()
    log.confirm()
    add(log, b"b" * 100)
    log.sync()
    log.trim(good.end)
    log.roll_back()
    assert (log.start, log.confirmed_end) == (good.end, good.end)
    later = add(log, b"c" * 100)
    assert later.first > good.end
    log.sync()
    log.confirm()
    finish(log)
    assert everything(open_log(tmp_path, ms=1000)) == [b"c" * 100]


def test_what_is_taken_back_twice_is_counted_by_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(tmp_path, segment_bytes=64)
    good = add(log, b"good" * 100)
    log.confirm()
    for _ in range(2):
        add(log, b"taken back")
        log.roll_back()
        assert log.count(good.first, log.end) == 1
        log.sync()
        log.confirm()
    add(log, b"better")
    assert log.count(good.first, log.end) == 2
    finish(log)
    again = open_log(tmp_path, ms=1000)
    assert everything(again) == [b"good" * 100, b"better"]
    assert not caplog.text


def test_what_is_written_anew_at_the_end_is_closed_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(tmp_path)
    add(log, b"a")
    with monkeypatch.context() as patch:
        failing = FailingOs(0, only={"fdatasync"}, code=errno.EIO)
        patch.setattr(module, "os", failing)
        with pytest.raises(StorageError):
            log.sync()
    finish(log)
    assert everything(open_log(tmp_path, ms=1000)) == [b"a"]
