"""What of a log is kept beyond what channels need, and where in it a time is.

NSQ has neither; the log makes both easy. A segment is kept as long as anything in it is young enough,
or as long as what is behind it is not as much as is to be kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools.broker.segment import HEADER_SIZE_BYTES, read_blocks
from nsqtools.options import Kind, Size, render_duration
from nsqtools.options.kinds import duration_ns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsqtools.broker.block import Block
    from nsqtools.broker.segment import Segment

_SIZE = Size(minimum=0)
_PROBE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How much is kept: of so many seconds, or of so many bytes for each topic; 0 both: nothing."""

    age_s: float = 0.0
    size_bytes: int = 0

    @property
    def is_none(self) -> bool:
        """Whether nothing is kept beyond what channels need."""
        return not (self.age_s or self.size_bytes)

    def end(self, segments: Sequence[Segment], now_ns: int) -> int | None:
        """Where what need not be kept ends; None where all is to be kept.

        The last segment is written to, and always kept.
        """
        size_bytes = sum(segment.size_bytes for segment in segments)
        end = None
        for segment in segments[:-1]:
            size_bytes -= segment.size_bytes
            is_young = self.age_s > 0 and now_ns - segment.written_ns < self.age_s * 1e9
            if is_young or (self.size_bytes and size_bytes < self.size_bytes):
                break
            end = segment.end
        return end


class RetentionKind(Kind[Retention]):
    """A duration or a size."""

    metavar = "DURATION|SIZE"
    explain = "24h, 90m, or 10GiB, 500MiB"

    def parse(self, text: str) -> Retention:
        if text == "0":
            return Retention()
        if text.isdecimal():
            raise ValueError(f"has no unit, write for example {text}h or {text}GiB")
        try:
            nanoseconds = duration_ns(text)
        except ValueError:
            try:
                return Retention(size_bytes=_SIZE.parse(text))
            except ValueError:
                raise ValueError("should be a time such as 24h or a size such as 10GiB") from None
        if nanoseconds < 0:
            raise ValueError("should not be less than nothing")
        return Retention(age_s=nanoseconds / 1e9)

    def render(self, value: Retention) -> str:
        if value.age_s:
            return render_duration(value.age_s)
        size = _SIZE.render(value.size_bytes)
        # What comes without a unit there was written in thousands.
        return f"{value.size_bytes // 1000}k" if value.size_bytes and size.isdecimal() else size


RETENTION = RetentionKind()


def number_at(segments: Sequence[Segment], time_ns: int) -> int | None:
    """The first message that was published at this time or later; None where there is none.

    For a thread: it reads a few pieces of the log. Messages of a block have one time, and blocks are in
    the order of theirs, as long as the clock does not go back. Raises StorageError.
    """
    holding = [segment for segment in segments if segment.first < segment.end]
    low, high = 0, len(holding)
    while low < high:  # the first segment that begins at the time or later
        middle = (low + high) // 2
        block = _block_at(holding[middle], HEADER_SIZE_BYTES)
        if block is not None and block.timestamp_ns < time_ns:
            low = middle + 1
        else:
            high = middle
    if low > 0:
        found = _number_in(holding[low - 1], time_ns)
        if found is not None:
            return found
    return holding[low].first if low < len(holding) else None


def _number_in(segment: Segment, time_ns: int) -> int | None:
    positions = segment.positions
    low, high = 0, len(positions)
    while low < high:
        middle = (low + high) // 2
        block = _block_at(segment, positions[middle])
        if block is not None and block.timestamp_ns < time_ns:
            low = middle + 1
        else:
            high = middle
    position = positions[low - 1] if low else HEADER_SIZE_BYTES
    while position < segment.size_bytes:
        found = read_blocks(segment.path, position, segment.size_bytes, _PROBE_BYTES)
        if not isinstance(found, list):
            return None
        for block, _, position in found:  # noqa: B007 - where the next piece begins
            if block.timestamp_ns >= time_ns:
                return block.first
    return None


def _block_at(segment: Segment, position: int) -> Block | None:
    found = read_blocks(segment.path, position, segment.size_bytes, _PROBE_BYTES)
    return found[0][0] if isinstance(found, list) else None
