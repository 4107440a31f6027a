"""A scan with threads gives what one without gives; what is read ahead ends when nobody wants it."""

from __future__ import annotations

import io
import threading
import time
from typing import TYPE_CHECKING

import pytest
from tests.archive.helpers import batch_of, write_file

from nsqtools.archive import resync as resync_module
from nsqtools.archive import zstd_ahead
from nsqtools.archive.ahead import ahead
from nsqtools.archive.formats import NONE, RECORD_FORMATS, ZSTD
from nsqtools.archive.resync import resync
from nsqtools.archive.scan import Lost, Scan, Text
from nsqtools.archive.stream import Records, Source
from nsqtools.archive.zstd_frames import DATA_MAGIC

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMITS = [[batch_of([b"%d" % at, b"x" * 30], 2 * at)] for at in range(12)]


def scanned(data: bytes, record_format: str, threads: int) -> list[object]:
    found: list[object] = []
    source = Source(io.BytesIO(data), "x", read_bytes=100)
    for item in Scan(source, RECORD_FORMATS[record_format], ZSTD, threads=threads):
        if isinstance(item, Lost | Text):
            found.append(item)
        else:
            found.append((item.offset, item.bodies))
    return found


@pytest.mark.parametrize("record_format", ["lines", "framed"])
def test_threads_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_format: str
) -> None:
    monkeypatch.setattr(zstd_ahead, "AHEAD_BYTES_MIN", 1)
    data = write_file(tmp_path, record_format, "zstd", COMMITS).read_bytes()
    assert len(scanned(data, record_format, 1)) == len(COMMITS)
    before = threading.active_count()
    for at in range(0, len(data), 13):
        changed = bytearray(data)
        changed[at] ^= 0xFF
        for each in (data[:at], bytes(changed), data[:at] + data):
            assert scanned(each, record_format, 1) == scanned(each, record_format, 0), at
    assert threading.active_count() == before


def test_a_frame_too_large_to_decode_ahead_is_read_in_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zstd_ahead, "AHEAD_BYTES_MIN", 20)
    monkeypatch.setattr(zstd_ahead, "AHEAD_BYTES_MAX", 100)
    commits = [[batch_of([b"y" * (300 if at % 3 else 10)], at)] for at in range(12)]
    data = write_file(tmp_path, "lines", "zstd", commits).read_bytes()
    assert scanned(data, "lines", 1) == scanned(data, "lines", 0)
    assert len(scanned(data, "lines", 1)) == 12


def test_a_file_of_magic_numbers_does_not_cost_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resync_module, "TRIED_BYTES_MAX", 4 << 20)
    tried = Source(io.BytesIO(DATA_MAGIC * 4000), "x")
    assert resync(tried, "zstd", "lines", 0) is None
    assert tried.position < 4 * 1100


def test_what_messages_look_like_hides_nothing_that_is_whole(tmp_path: Path) -> None:
    """A message of little-endian numbers has thousands of what may be the marks of a group."""
    likeness = b"\xff\xff\xff\xff" + bytes(12)
    commits = [
        [batch_of([b"one"])],
        [batch_of([b"two", likeness * 2000], 1)],
        [batch_of([b"4"], 3)],
    ]
    data = bytearray(write_file(tmp_path, "framed", "none", commits).read_bytes())
    data[data.index(b"two")] ^= 1
    scan = Scan(Source(io.BytesIO(data), "x"), RECORD_FORMATS["framed"], NONE)
    assert [run.bodies for run in scan if isinstance(run, Records)] == [[b"one"], [b"4"]]


def test_items_come_in_order_and_errors_behind_them() -> None:
    def items() -> Iterator[int]:
        yield from range(10)
        raise OSError("the disk")

    found = []
    with pytest.raises(OSError, match="the disk"):  # noqa: PT012 - what comes before it counts
        for item in ahead(items()):
            found.append(item)  # noqa: PERF402 - as far as it comes
    assert found == list(range(10))


def test_no_more_is_made_than_may_wait() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    before = threading.active_count()
    taken = ahead(items(), count=3)
    assert next(taken) == 0
    time.sleep(0.05)
    assert len(made) <= 6
    taken.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_who_stops_does_not_wait_for_an_item_that_is_long_in_coming() -> None:
    go_on = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        go_on.wait(30)

    taken = ahead(items())
    assert next(taken) == 1
    began_s = time.monotonic()
    taken.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began_s < 5
    go_on.set()
