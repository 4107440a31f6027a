"""An archive as one stream, to a descriptor that somebody else has opened."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest
from tests.archive.helpers import PAIRS, batch_of, read_bodies

from nsqtools.archive import streaming
from nsqtools.archive.streaming import StreamSpec, StreamWriter
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

BODIES = [b"%d" % number for number in range(12)]


def spec(record_format: str = "lines", compression: str = "none") -> StreamSpec:
    return StreamSpec(
        topic="t", channel="c", host="h", record_format=record_format, compression=compression
    )


def write_all(writer: StreamWriter) -> None:
    for at in range(0, len(BODIES), 3):
        writer.commit([batch_of([]), batch_of(BODIES[at : at + 3], at)])
    writer.commit([])
    writer.close()
    writer.close()


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_is_an_archive(record_format: str, compression: str, tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with path.open("wb") as file:
        write_all(StreamWriter(spec(record_format, compression), file.fileno()))
    assert read_bodies(path) == (BODIES, None)


@pytest.mark.parametrize("record_format", ["lines", "framed"])
def test_a_long_one_is_several(
    record_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index has a bound."""
    monkeypatch.setattr(streaming, "FRAMES_PER_FILE", 2)
    path = tmp_path / "stream"
    with path.open("wb") as file:
        write_all(StreamWriter(spec(record_format, "zstd"), file.fileno()))
    assert read_bodies(path) == (BODIES, None)


def test_nothing_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with path.open("wb") as file:
        StreamWriter(spec("framed", "zstd"), file.fileno()).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize("blocking", [True, False])
def test_a_pipe_takes_a_part_at_a_time(*, blocking: bool) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, blocking)
    found: list[bytes] = []

    def read() -> None:
        while data := os.read(reading, 1 << 16):
            found.append(data)

    thread = threading.Thread(target=read)
    thread.start()
    large = b"x" * (1 << 20)
    writer = StreamWriter(spec(), writing)
    assert writer.commit([batch_of([large])]) == (len(large) + 1, 0)
    os.close(writing)
    thread.join()
    os.close(reading)
    assert b"".join(found) == large + b"\n"


def test_what_broke_stays_broken() -> None:
    """Half of a commit may stand there: nothing can be put behind it."""
    reading, writing = os.pipe()
    os.close(reading)
    writer = StreamWriter(spec(), writing)
    for _ in range(2):
        with pytest.raises(StorageError, match="write standard output: Broken pipe"):
            writer.commit([batch_of([b"one"])])
    assert writer.broken is not None
    writer.close()
    os.close(writing)


def test_one_that_is_closed() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with pytest.raises(StorageError, match="open standard output"):
        StreamWriter(spec(), writing)
