"""The commands of `nsqtools archive` on one large file of `lines` in zstd, beside the zstd tool.

The file is what a busy topic leaves: commits of 2,500 messages, a message a millisecond. It was just
written, and is read from memory where that is large enough. A minute of it is also fetched from rclone's
server, with every byte of the answers counted.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks import data
from tests.benchmarks.nsqd import our_program
from tests.benchmarks.processes import POLL_S, ROOT, BenchError
from tests.benchmarks.table import Target
from tests.support.faults import FaultProxy
from tests.support.stores import ENVIRONMENT, StoreServer

from nsqtools.archive.groups import Group
from nsqtools.archive.header import encode_header
from nsqtools.archive.reader import open_archive
from nsqtools.archive.zstd_frames import ZstdContainer
from nsqtools.options import render_time_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ARCHIVE_BYTES = 2_000_000_000
QUICK_ARCHIVE_BYTES = 100_000_000
NAME = "archive"
BUCKET = "archives"
COMMIT_MESSAGES = 2500
SPACING_NS = 1_000_000
START_NS = 1_769_860_800 * 10**9
MINUTE_NS = 60 * 10**9
READ_SHARE_MAX = 0.01
FIRST_LINE_S = 0.2
VERIFY_RATIO_MIN = 0.7
CAT_TIMES_MAX = 1.5
# Output beyond any file: what makes `head` a reader that takes everything.
_EVERYTHING = "1000000000000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was found; a ratio is None where there is no zstd tool to stand beside."""

    archive_bytes: int
    content_bytes: int
    read_share: float
    fetched_bytes: int
    first_line_s: float
    start_s: float
    verify_s: float
    zstd_t_s: float | None
    cat_s: float
    zstdcat_s: float | None
    verify_peak_bytes: int
    cat_peak_bytes: int

    @property
    def fetched_share(self) -> float:
        return self.fetched_bytes / self.archive_bytes

    def lines(self) -> Iterator[str]:
        """For a person."""
        yield (
            f"{self.archive_bytes / 1e6:,.0f} MB of zstd with {self.content_bytes / 1e6:,.0f} MB of"
            f" lines; Python itself starts in {self.start_s:.3f} s"
        )
        yield f"archive cat of a minute of the object: {self.fetched_bytes / 1e3:,.0f} kB fetched"
        for name, ours_s, tool, theirs_s, peak in (
            ("archive verify", self.verify_s, "zstd -t", self.zstd_t_s, self.verify_peak_bytes),
            ("archive cat | head -c", self.cat_s, "zstdcat | head -c", self.zstdcat_s,
             self.cat_peak_bytes),
        ):  # fmt: skip
            beside = "" if theirs_s is None else f", {tool} {theirs_s:.2f} s"
            yield f"{name} {ours_s:.2f} s, peak {peak / 1e6:.0f} MB{beside}"

    def targets(self) -> list[Target]:
        """What the project set itself."""
        verify = None if self.zstd_t_s is None else self.zstd_t_s / self.verify_s
        cat = None if self.zstdcat_s is None else self.cat_s / self.zstdcat_s
        return [
            Target(
                what="archive cat of a minute: bytes read",
                wanted=f"< {READ_SHARE_MAX:.0%} of the file",
                measured=f"{self.read_share:.2%}",
                met=self.read_share < READ_SHARE_MAX,
            ),
            Target(
                what="archive cat of a minute: bytes fetched",
                wanted=f"< {READ_SHARE_MAX:.0%} of the object",
                measured=f"{self.fetched_share:.2%}",
                met=self.fetched_share < READ_SHARE_MAX,
            ),
            Target(
                what="archive cat of a minute: first line",
                wanted=f"< {FIRST_LINE_S:.2f} s",
                measured=f"{self.first_line_s:.3f} s",
                met=self.first_line_s < FIRST_LINE_S,
            ),
            Target(
                what="archive verify beside zstd -t",
                wanted=f">= {VERIFY_RATIO_MIN:.0%} of its speed",
                measured=None if verify is None else f"{verify:.0%}",
                met=verify is not None and verify >= VERIFY_RATIO_MIN,
            ),
            Target(
                what="archive cat beside zstdcat | head -c",
                wanted=f"<= {CAT_TIMES_MAX} times its time",
                measured=None if cat is None else f"{cat:.2f}",
                met=cat is not None and cat <= CAT_TIMES_MAX,
            ),
        ]


def measure(folder: Path, archive_bytes: int, runs: int) -> Measured:
    """All of it, medians of `runs`, taken in turn. Raises BenchError when a command fails."""
    path = folder / BUCKET / "archive.log.zst"
    path.parent.mkdir()
    content_bytes, frames = write_archive(path, archive_bytes)
    since_ns = START_NS + frames // 2 * COMMIT_MESSAGES * SPACING_NS
    minute = [
        "cat",
        f"--since={render_time_ns(since_ns)}",
        f"--until={render_time_ns(since_ns + MINUTE_NS)}",
    ]
    verify, zstd_t, cat, zstdcat = [], [], [], []
    verify_peak = cat_peak = 0
    has_zstd = shutil.which("zstd") is not None
    for _ in range(runs):
        if has_zstd:
            zstd_t.append(_timed(["zstd", "-tq", str(path)])[0])
            zstdcat.append(_piped(["zstd", "-dcq", str(path)])[0])
        seconds, verify_peak = _timed(_ours("verify", str(path)))
        verify.append(seconds)
        seconds, cat_peak = _piped(_ours("cat", str(path)))
        cat.append(seconds)
    found = Measured(
        archive_bytes=path.stat().st_size,
        content_bytes=content_bytes,
        read_share=_bytes_read(path, since_ns) / path.stat().st_size,
        fetched_bytes=_bytes_fetched(path, minute),
        first_line_s=statistics.median(_first_line_s(_ours(*minute, str(path))) for _ in range(5)),
        start_s=statistics.median(_first_line_s([*_python(), "print()"]) for _ in range(5)),
        verify_s=statistics.median(verify),
        zstd_t_s=statistics.median(zstd_t) if zstd_t else None,
        cat_s=statistics.median(cat),
        zstdcat_s=statistics.median(zstdcat) if zstdcat else None,
        verify_peak_bytes=verify_peak,
        cat_peak_bytes=cat_peak,
    )
    path.unlink()
    path.parent.rmdir()
    return found


def write_archive(path: Path, archive_bytes: int) -> tuple[int, int]:
    """Write a sealed file of at least this size; returns its content's size, and its frames."""
    messages = list(data.messages(40 * COMMIT_MESSAGES))
    chunks = [
        b"\n".join(messages[at : at + COMMIT_MESSAGES]) + b"\n"
        for at in range(0, len(messages), COMMIT_MESSAGES)
    ]
    header = encode_header(record_format="lines", topic="t", channel="bench", host="h")
    container = ZstdContainer(header, 3)
    with path.open("wb") as file:
        file.write(container.file_header)
        while container.end < archive_bytes:
            file.write(container.encode([_group(chunks, container.frames)]))
            container.keep()
        file.write(container.trailer())
    return sum(container.index.content_sizes), container.frames


def _group(chunks: Sequence[bytes], number: int) -> Group:
    first_ns = START_NS + number * COMMIT_MESSAGES * SPACING_NS
    last_ns = first_ns + (COMMIT_MESSAGES - 1) * SPACING_NS
    content = chunks[number % len(chunks)]
    return Group(content=content, records=COMMIT_MESSAGES, times=lambda: (first_ns, last_ns))


def _bytes_fetched(path: Path, minute: Sequence[str]) -> int:
    """What the answers of a store that has the file have, with their heads, when a minute of it is asked
    for; what comes has to be what the file gives."""
    wanted = _output(_ours(*minute, str(path)))
    os.environ.update(ENVIRONMENT)
    with (
        StoreServer("rclone", path.parent.parent) as server,
        FaultProxy(server.address).serving() as proxy,
    ):
        location = f"s3://{path.parent.name}/{path.name}"
        found = _output(_ours(*minute, f"--endpoint-url={proxy.endpoint_url}", location))
        if not wanted or found != wanted:
            raise BenchError(f"{len(found)} bytes came of the object, {len(wanted)} of the file")
        return proxy.answered_bytes


def _output(argv: Sequence[str]) -> bytes:
    ended = subprocess.run(argv, capture_output=True, cwd=ROOT, check=False)
    if ended.returncode != 0:
        raise BenchError(f"{argv!r} ended with {ended.returncode}: {ended.stderr.decode()}")
    return ended.stdout


def _ours(*words: str) -> list[str]:
    return [*our_program("archive"), *words]


def _python() -> list[str]:
    return [our_program("archive")[0], "-c"]


def _timed(argv: Sequence[str]) -> tuple[float, int]:
    """Seconds that a command takes, and its largest resident size in bytes."""
    return _waited(lambda: subprocess.Popen(argv, stdout=subprocess.DEVNULL, cwd=ROOT))


def _piped(argv: Sequence[str]) -> tuple[float, int]:
    """The same of a command whose output `head -c` takes."""
    with contextlib.ExitStack() as held:

        def start() -> subprocess.Popen[bytes]:
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT)
            held.enter_context(
                subprocess.Popen(
                    ["head", "-c", _EVERYTHING], stdin=process.stdout, stdout=subprocess.DEVNULL
                )
            )
            assert process.stdout is not None
            process.stdout.close()
            return process

        return _waited(start)


def _waited(start: Callable[[], subprocess.Popen[bytes]]) -> tuple[float, int]:
    began_s = time.perf_counter()
    process = start()
    peak_bytes = 0
    # The peak that the system reports at the end would count this process, which it was forked from.
    while process.poll() is None:
        peak_bytes = max(peak_bytes, _peak_bytes(process.pid))
        time.sleep(POLL_S)
    seconds = time.perf_counter() - began_s
    if process.returncode != 0:
        raise BenchError(f"{process.args!r} ended with {process.returncode}")
    return seconds, peak_bytes


def _peak_bytes(pid: int) -> int:
    """The largest resident size so far; 0 for a process that has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def _first_line_s(argv: Sequence[str]) -> float:
    """Seconds from the start of the process to the end of its first line."""
    began_s = time.perf_counter()
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = time.perf_counter() - began_s
        process.stdout.read()
    return seconds


class _CountedFile(io.FileIO):
    """A file that counts the bytes that are read of it."""

    total = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.total += len(found)
        return found


def _bytes_read(path: Path, since_ns: int) -> int:
    """What a reader reads of the file for a minute of it."""
    with _CountedFile(path) as file, contextlib.closing(open_archive(file)) as reader:
        lines = sum(
            block.data.count(b"\n") for block in reader.content(since_ns, since_ns + MINUTE_NS)
        )
        if lines < min(MINUTE_NS // SPACING_NS, COMMIT_MESSAGES):
            raise BenchError(f"{lines} lines in a minute")
        return file.total
