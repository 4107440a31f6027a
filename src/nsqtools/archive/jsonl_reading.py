"""Reading what `jsonl` writes, and what others write as it says (docs/formats.md, "jsonl").

Lines are read with a few calls for all of them together: those that our encoder wrote as alike give
their bodies as one string, all others are parsed as one array.
"""

from __future__ import annotations

import struct
from base64 import b64decode
from functools import partial
from itertools import chain, repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import orjson

from nsqtools.archive.failures import Failure
from nsqtools.archive.jsonl import (
    BETWEEN_BODIES,
    DIGITS,
    ID_START,
    LINE_END,
    LINE_START,
    line_bytes_max,
)
from nsqtools.archive.lines import LineSplitter
from nsqtools.archive.stream import Damage, Records
from nsqtools.wire.cutting import cut, same_in_run
from nsqtools.wire.messages import Messages
from nsqtools.wire.payloads import ID_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_COMMON = {"ts", "id", "attempts", "nsqd", "topic"}
_FAILURE = {"status", "error", "tries"}
_KEYS = tuple(
    _COMMON | body | failure for failure in (set(), _FAILURE) for body in ({"body"}, {"body_b64"})
)
_NUMBERS = {"ts", "attempts", "status", "tries"}
_MEMBERS = 6
_COLUMNS = itemgetter("ts", "id", "attempts", "nsqd", "topic")
_COLUMNS_AND_BODY = itemgetter("ts", "id", "attempts", "nsqd", "topic", "body")
# As PAYLOAD_HEADER, with the 64 bits of the timestamp as a line writes them: without a sign.
_HEADER = struct.Struct(">QH16s")
_TIMESTAMP_MAX = 2**64 - 1
_ATTEMPTS_MAX = 2**16 - 1

# A number between lines: with it, every line that is an object is every other element of the array.
_BETWEEN_LINES = b",\n0,"
_BODY_START = b'"body":"'
# A line up to its id, as our encoder writes it with an id as nsqd makes it.
_ID_AT = len(LINE_START) + DIGITS + len(ID_START)
_HEAD = LINE_START + b"0" * DIGITS + ID_START + b"0" * ID_BYTES + b'"'
_HEAD_BYTES = len(_HEAD)
_HEAD_OF = itemgetter(slice(_HEAD_BYTES))
# Where each of them has the same byte.
_FIXED = tuple(at for at, byte in enumerate(_HEAD) if byte != ord("0"))
# Shorter runs of lines that are alike are not worth looking for.
_RUN_MIN = 16


def is_ours(line: bytes) -> bool:
    """Whether a line is an object with exactly our members."""
    try:
        _record(line)
    except ValueError:
        return False
    return True


class JsonlDecoder:
    """Lines to bodies, the nsqds that delivered them and, when asked for, messages."""

    def __init__(self, body_bytes_max: int) -> None:
        self._splitter = LineSplitter(line_bytes_max(body_bytes_max))

    def feed(self, data: bytes, offset: int) -> Iterator[Records]:
        lines, start = self._splitter.feed(data, offset, keepends=True)
        if lines:
            yield from _decode(lines, start, LINE_END, torn=False)

    def finish(self) -> Iterator[Records]:
        line, start = self._splitter.rest()
        if line is not None:
            yield from decode_lines([line], start, torn=True)


class _Columns:
    """What lines said, as far as they were decoded."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.nsqds: list[str] = []
        self.failures: list[Failure | None] = []
        self._heads: list[Callable[[], Iterable[bytes]]] = []

    def add(
        self,
        bodies: list[bytes],
        nsqds: Sequence[str],
        failures: list[Failure | None],
        make_heads: Callable[[], Iterable[bytes]],
    ) -> None:
        """Those of some lines; `make_heads` packs what stands before the bodies in NSQ's layout."""
        self.bodies += bodies
        self.nsqds += nsqds
        self.failures += failures
        self._heads.append(make_heads)

    def records(self, offset: int, make_lines: Callable[[], list[bytes]]) -> Records:
        return Records(
            bodies=self.bodies,
            offset=offset,
            make_lines=make_lines,
            nsqds=self.nsqds,
            failures=self.failures if any(self.failures) else None,
            make_messages=self._messages,
        )

    def _messages(self) -> Messages:
        """NSQ's layout, packed when somebody asks for it: a replay does not."""
        heads = chain.from_iterable(make() for make in self._heads)
        return Messages([head + body for head, body in zip(heads, self.bodies, strict=True)])


def decode_lines(lines: list[bytes], start: int, *, torn: bool = False) -> Iterator[Records]:
    """Records of lines without their ends, the first of which stands at `start`; raises `Damage` behind
    those before the first that is none."""
    yield from _decode(lines, start, LINE_END[:-1], torn=torn)


def _decode(lines: list[bytes], start: int, end: bytes, *, torn: bool) -> Iterator[Records]:
    """As `decode_lines`; `end` is how lines of ours end here, with their newline or without."""
    plain = partial(_without_ends, lines, end)
    columns = _decode_together(lines, end)
    if columns is None:
        yield from _decode_one_by_one(plain(), start, torn=torn)
    else:
        yield columns.records(start, plain)


def _without_ends(lines: list[bytes], end: bytes) -> list[bytes]:
    return [line[:-1] for line in lines] if end == LINE_END else lines


def _decode_together(lines: list[bytes], end: bytes) -> _Columns | None:
    """All lines by few calls, or None when any of them is no record."""
    columns = _Columns()
    try:
        done = _decode_alike(lines, end, columns)
        if done < len(lines):
            _decode_array(lines[done:] if done else lines, columns)
    except (ValueError, AttributeError, TypeError, KeyError):
        return None  # whatever it is, one of them is no record: which one is found one by one
    return columns


def _decode_alike(lines: list[bytes], end: bytes, columns: _Columns) -> int:
    """Runs of lines that differ in ts, id and body only, as our encoder writes them; how many."""
    done, tried = 0, len(lines)
    while done < len(lines):
        first = lines[done]
        body_at = first.find(_BODY_START, _HEAD_BYTES) + len(_BODY_START)
        shape = _Shape(first[_HEAD_BYTES:body_at], end)
        stop = shape.stop(lines, done, tried)
        run = lines if stop - done == len(lines) else lines[done:stop]
        if len(run) < _RUN_MIN or not shape.decode(run, columns):
            break
        # The next run is about as long: no look at all of the rest.
        done, tried = stop, 2 * len(run)
    return done


class _Shape:
    """Of lines that have the same between id and body, and an end of ours."""

    def __init__(self, middle: bytes, end: bytes) -> None:
        self._middle = middle
        self._body_at = body_at = _HEAD_BYTES + len(middle)
        self._middle_of = itemgetter(slice(_HEAD_BYTES, body_at))
        self._text_of = itemgetter(slice(body_at, -len(end)))
        self._end = end
        self._end_of = itemgetter(slice(-len(end), None))

    def stop(self, lines: list[bytes], start: int, tried: int) -> int:
        """Where the first from `start` on is of another shape; `tried` are looked at first, then twice as
        many at a time."""
        while self._middle and start < len(lines):
            middles = list(map(self._middle_of, lines[start : start + tried]))
            if middles.count(self._middle) < len(middles):
                return start + list(map(self._middle.__eq__, middles)).index(False)
            start, tried = start + len(middles), 2 * tried
        return start

    def decode(self, lines: list[bytes], columns: _Columns) -> bool:
        """False when any is not as our encoder writes it.

        The bodies are read as one string, with a character between them that may stand in a string.
        Each is read as it would be alone: no escape goes on behind that character, and none ends the
        string.
        """
        count = len(lines)
        heads = b"".join(map(_HEAD_OF, lines))
        if not _are_heads(heads, count) or [*map(self._end_of, lines)].count(self._end) != count:
            return False
        if min(map(len, lines)) < self._body_at + len(self._end):
            return False  # the quote that begins a body is the one that ends it
        texts = BETWEEN_BODIES.join(map(self._text_of, lines))
        try:
            together: str = orjson.loads(b'"%b"' % texts)
        except ValueError:
            return False
        bodies = together.encode("utf-8").split(BETWEEN_BODIES)
        if len(bodies) != count:
            return False
        record = _record(lines[0])  # and so are the others
        if not orjson.dumps(record).startswith(lines[0][: self._body_at]):
            return False  # a member that stands there twice: the last one counts
        columns.add(
            bodies,
            [record["nsqd"]] * count,
            [_take_failure(record)] * count,
            partial(_packed_heads, heads, count, record["attempts"]),
        )
        return True


def _are_heads(heads: bytes, count: int) -> bool:
    """Whether all begin as the shape of a line wants it, and no timestamp begins with a zero."""
    first = heads[:_HEAD_BYTES]
    return (
        all(first[at] == _HEAD[at] for at in _FIXED)
        and same_in_run(heads, 0, _HEAD_BYTES * count, _HEAD_BYTES, _FIXED)
        and b"0" not in heads[len(LINE_START) :: _HEAD_BYTES]
        and _together(heads, len(LINE_START), DIGITS).isdigit()
        and _together(heads, _ID_AT, ID_BYTES).isalnum()
    )


def _together(heads: bytes, start: int, size: int) -> bytes:
    """These bytes of all heads, in whatever order."""
    return b"".join([heads[at::_HEAD_BYTES] for at in range(start, start + size)])


def _packed_heads(heads: bytes, count: int, attempts: int) -> Iterator[bytes]:
    timestamps = map(int, cut(heads, 0, _HEAD_BYTES, len(LINE_START), DIGITS, count))
    ids = cut(heads, 0, _HEAD_BYTES, _ID_AT, ID_BYTES, count)
    return map(_HEADER.pack, timestamps, repeat(attempts), ids)


def _decode_array(lines: list[bytes], columns: _Columns) -> None:
    """All lines as one array; raises for any that is no record.

    One call must not see other records than a call for each line does. It cannot: behind each line
    stands a newline, so no string goes on behind it; what spans lines otherwise is a list or an
    object within a record, and no member may be one. So each of the n - 1 numbers put between lines
    is an element of its own, a line is at least one more, and of 2n - 1 there is none left over.
    """
    elements = orjson.loads(b"[" + _BETWEEN_LINES.join(lines) + b"]")
    if len(elements) != 2 * len(lines) - 1:
        raise ValueError("not a record a line")
    _add(elements[::2], columns)


def _add(records: list[dict[str, Any]], columns: _Columns) -> None:
    """Raises for what `_check` refuses, a column at a time."""
    failures: list[Failure | None] = [None] * len(records)
    if {*map(len, records)} != {_MEMBERS}:
        failures = [_take_failure(record) for record in records]
    try:
        found = zip(*map(_COLUMNS_AND_BODY, records), strict=True)
        timestamps, ids, attempts, nsqds, topics, texts = found
        bodies = [*map(str.encode, texts)]
    except KeyError:
        timestamps, ids, attempts, nsqds, topics = zip(*map(_COLUMNS, records), strict=True)
        bodies = [_decode_body(record) for record in records]
    if {*map(len, records)} != {_MEMBERS}:
        raise ValueError("not the members of a record")
    if {*map(type, timestamps), *map(type, attempts)} != {int}:
        raise ValueError("a number that is none")
    _check_range("ts", min(timestamps), max(timestamps), _TIMESTAMP_MAX)
    _check_range("attempts", min(attempts), max(attempts), _ATTEMPTS_MAX)
    "".join(nsqds + topics)  # raises when one of them is no string
    if {*map(len, ids)} != {ID_BYTES}:
        raise ValueError("id")
    encoded = [one.encode("latin-1") for one in ids]
    columns.add(bodies, nsqds, failures, lambda: map(_HEADER.pack, timestamps, attempts, encoded))


def _decode_one_by_one(lines: list[bytes], start: int, *, torn: bool) -> Iterator[Records]:
    records: list[dict[str, Any]] = []
    offset = start
    damage: Damage | None = None
    for line in lines:
        try:
            records.append(_record(line))
        except ValueError as error:
            reason = "a cut line" if torn else f"a line that is no record ({error})"
            damage = Damage(offset, reason, torn=torn)
            damage.__cause__ = error
            break
        offset += len(line) + 1
    if records:
        columns = _Columns()
        _add(records, columns)
        yield columns.records(start, lambda: lines[: len(records)])
    if damage is not None:
        raise damage


def _record(line: bytes) -> dict[str, Any]:
    """The record that a line is; raises `ValueError` when it is none."""
    record = orjson.loads(line)
    if type(record) is not dict:
        raise ValueError("not an object")
    _check(record)
    return record


def _check(record: dict[str, Any]) -> None:
    """Raise `ValueError` unless these are our members, of the right types."""
    if record.keys() not in _KEYS:
        raise ValueError("not the members of a record")
    for name, highest in (("ts", _TIMESTAMP_MAX), ("attempts", _ATTEMPTS_MAX)):
        if type(record[name]) is not int:
            raise ValueError(name)
        _check_range(name, record[name], record[name], highest)
    if not all(isinstance(record[name], str) for name in record.keys() - _NUMBERS):
        raise ValueError("a member that is no string")
    if len(record["id"].encode("latin-1")) != ID_BYTES:
        raise ValueError("id")
    _decode_body(record)
    _failure_of(record)


def _take_failure(record: dict[str, Any]) -> Failure | None:
    """Takes the members of a dead letter out of a record, if they are there."""
    failure = _failure_of(record)
    if failure is not None:
        for name in _FAILURE:
            del record[name]
    return failure


def _failure_of(record: dict[str, Any]) -> Failure | None:
    """Raises ValueError or KeyError for what is none."""
    if "status" not in record:
        return None
    status, error, tries = record["status"], record["error"], record["tries"]
    if type(status) is not int or type(tries) is not int or type(error) is not str:
        raise ValueError("failure")
    return Failure(status=status, error=error, tries=tries)


def _check_range(name: str, lowest_seen: int, highest_seen: int, highest: int) -> None:
    if lowest_seen < 0 or highest_seen > highest:
        raise ValueError(name)


def _decode_body(record: dict[str, Any]) -> bytes:
    text: str | None = record.get("body")
    if text is not None:
        return text.encode("utf-8")
    return b64decode(record["body_b64"], validate=True)


def topic_of(start: bytes) -> str:
    """The topic of the first line in the first bytes of a file; "" where that is no record."""
    try:
        return str(_record(start.split(b"\n", 1)[0])["topic"])
    except ValueError:
        return ""
