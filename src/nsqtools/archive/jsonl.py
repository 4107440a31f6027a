"""Record format `jsonl`: one JSON object a line (docs/formats.md, "jsonl").

A batch is written and read with a few calls for all of its lines together: bodies are escaped as
one string, with a character between them that JSON leaves as it is; lines are parsed as one array.
"""

from __future__ import annotations

import struct
from base64 import b64decode, b64encode
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import orjson

from nsqtools.archive.failures import ERROR_LENGTH_MAX, FailedMessages, Failure
from nsqtools.archive.groups import Encoded
from nsqtools.archive.lines import LineSplitter
from nsqtools.archive.stream import Damage, Records
from nsqtools.errors import ArchiveError
from nsqtools.wire.cutting import cut, same_in_run
from nsqtools.wire.messages import ID_BYTES, Messages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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

# DEL is the one character below 128 that JSON does not escape and that text hardly ever holds.
_BETWEEN_BODIES = b"\x7f"
# A number between lines: with it, every line that is an object is every other element of the array.
_BETWEEN_LINES = b",\n0,"
LINE_START, _LINE_END = b'{"ts":', b'"}\n'
_ID_START = b',"id":"'
_BODY_START = b'"body":"'
# A line up to its id, as it is for all of the years from 2001 to 2286, and with an id as nsqd makes it.
_DIGITS = 19
_ID_AT = len(LINE_START) + _DIGITS + len(_ID_START)
_HEAD_BYTES = _ID_AT + ID_BYTES + 1
# Shorter runs of lines that are alike are not worth looking for.
_RUN_MIN = 16
_LINE_END_AND_START = _LINE_END + LINE_START
# What JSON writes as 2 bytes, and what it writes as 6.
_SHORT_ESCAPES = b'"\\\b\t\n\f\r'
_LONG_ESCAPES = bytes(set(range(32)) - set(_SHORT_ESCAPES))
_ESCAPE_BYTES_MAX = 6
# Text of up to this size stays text whatever it holds, so that jq finds what it looks for; of larger
# bodies, those that escapes would blow up beyond base64 are written as base64.
ALWAYS_TEXT_BYTES_MAX = 64 << 10
# Names of hosts have 255 characters; all members but the body and the nsqd take some 400 bytes, and the
# error of a dead letter, which is cut, up to 1200.
NSQD_BYTES_MAX = 4 << 10
_REST_BYTES_MAX = NSQD_BYTES_MAX + (2 << 10)


def line_bytes_max(body_bytes_max: int) -> int:
    """The longest line that a body of this size makes."""
    always_text = _ESCAPE_BYTES_MAX * min(body_bytes_max, ALWAYS_TEXT_BYTES_MAX)
    return max(always_text, _base64_bytes(body_bytes_max)) + _REST_BYTES_MAX


def _base64_bytes(body_bytes: int) -> int:
    return (body_bytes + 2) // 3 * 4


class JsonlEncoder:
    """What is the same for a whole batch is written once, as bytes between the columns."""

    stream_header = b""

    def __init__(self, topic: str) -> None:
        self._topic = orjson.dumps(topic)

    def encode(self, batches: Sequence[Messages]) -> Encoded:
        """None is ambiguous: a newline is escaped. Raises `ArchiveError` for a too long nsqd."""
        failed = [messages for messages in batches if isinstance(messages, FailedMessages)]
        if failed and len(failed) == len(batches):
            return Encoded(b"".join([self._line(*one) for one in _failed(failed)]), 0)
        parts: list[bytes] = []
        for messages in batches:
            if len(messages):
                parts += self._parts(messages)
        if parts:
            parts[0], parts[-1] = LINE_START + parts[0], _LINE_END
        return Encoded(b"".join(parts), 0)

    def _line(self, messages: Messages, at: int, failure: Failure) -> bytes:
        """That of a dead letter, of which there are few."""
        text, is_base64 = _text(messages.bodies[at])
        return b'{"ts":%d,"id":%b,"attempts":%d%b%b%b":"%b"}\n' % (
            messages.timestamps[at],
            orjson.dumps(messages.ids[at].decode("latin-1")),
            messages.attempts[at],
            self._rest(messages)[:-2],
            _failure_text(failure),
            b"body_b64" if is_base64 else b"body",
            text,
        )

    def _parts(self, messages: Messages) -> list[bytes]:
        """The columns with what stands between them; the first line lacks its start."""
        texts = _texts_together(messages)
        in_base64 = None
        if texts is None:
            pairs = [_text(body) for body in messages.bodies]
            texts = [text for text, _ in pairs]
            in_base64 = [is_base64 for _, is_base64 in pairs]
        parts = [b',"id":"'] * (6 * len(messages))
        parts[::6] = orjson.dumps(messages.timestamps)[1:-1].split(b",")
        parts[2::6] = _ids(messages.ids)
        parts[3::6] = self._betweens(messages, in_base64)
        parts[4::6] = texts
        parts[5::6] = [_LINE_END_AND_START] * len(messages)
        return parts

    def _rest(self, messages: Messages) -> bytes:
        """What stands behind the attempts."""
        nsqd = orjson.dumps(messages.nsqd.encode("utf-8", "replace").decode("utf-8"))
        if len(nsqd) > NSQD_BYTES_MAX:
            raise ArchiveError(f"the name of an nsqd is longer than {NSQD_BYTES_MAX} bytes")
        return b',"nsqd":%b,"topic":%b,"' % (nsqd, self._topic)

    def _betweens(self, messages: Messages, in_base64: list[bool] | None) -> list[bytes]:
        """What stands between id and body in each line."""
        rest = self._rest(messages)
        if in_base64 is None and messages.same_attempts is not None:
            return [b'","attempts":%d%bbody":"' % (messages.same_attempts, rest)] * len(messages)
        kinds = in_base64 or [False] * len(messages)
        return [
            b'","attempts":%d%b%b":"' % (number, rest, b"body_b64" if is_base64 else b"body")
            for number, is_base64 in zip(messages.attempts, kinds, strict=True)
        ]


def _failed(batches: Sequence[FailedMessages]) -> Iterator[tuple[Messages, int, Failure]]:
    for messages in batches:
        for at, failure in enumerate(messages.failures):
            yield messages, at, failure


def _failure_text(failure: Failure) -> bytes:
    text = failure.error[:ERROR_LENGTH_MAX].encode("utf-8", "replace").decode("utf-8")
    error = orjson.dumps(text)
    return b',"status":%d,"error":%b,"tries":%d,"' % (failure.status, error, failure.tries)


def _ids(ids: list[bytes]) -> list[bytes]:
    if b"".join(ids).isalnum():  # as every nsqd writes them: nothing to escape
        return ids
    return [orjson.dumps(message_id.decode("latin-1"))[1:-1] for message_id in ids]


def _texts_together(messages: Messages) -> list[bytes] | None:
    """Every body between its quotes; None when not all of them can be written together."""
    if messages.body_bytes_max > ALWAYS_TEXT_BYTES_MAX:
        return None
    try:
        together = _BETWEEN_BODIES.join(messages.bodies).decode("utf-8")
    except UnicodeDecodeError:
        return None  # at least one of them is no text
    texts = orjson.dumps(together).split(_BETWEEN_BODIES)
    texts[0] = texts[0][1:]
    texts[-1] = texts[-1][:-1]
    return texts if len(texts) == len(messages) else None


def _text(body: bytes) -> tuple[bytes, bool]:
    """A body between its quotes, and whether that is base64."""
    if len(body) <= ALWAYS_TEXT_BYTES_MAX or _escaped_bytes(body) <= _base64_bytes(len(body)):
        try:
            return orjson.dumps(body.decode("utf-8"))[1:-1], False
        except UnicodeDecodeError:
            pass
    return b64encode(body), True


def _escaped_bytes(body: bytes) -> int:
    short = len(body) - len(body.translate(None, _SHORT_ESCAPES))
    long = len(body) - len(body.translate(None, _LONG_ESCAPES))
    return len(body) + short + (_ESCAPE_BYTES_MAX - 1) * long


def is_ours(line: bytes) -> bool:
    """Whether a line is an object with exactly our members."""
    try:
        _decode(line)
    except ValueError:
        return False
    return True


class JsonlDecoder:
    """Lines to bodies, the nsqds that delivered them and, when asked for, messages."""

    def __init__(self, body_bytes_max: int) -> None:
        self._splitter = LineSplitter(line_bytes_max(body_bytes_max))

    def feed(self, data: bytes, offset: int) -> Iterator[Records]:
        lines, start = self._splitter.feed(data, offset)
        if lines:
            yield from decode_lines(lines, start)

    def finish(self) -> Iterator[Records]:
        line, start = self._splitter.rest()
        if line is not None:
            yield from decode_lines([line], start, torn=True)


class _Columns:
    """What lines said, as far as they were decoded; timestamps as numbers or as their digits."""

    def __init__(self) -> None:
        self.timestamps: list[int | bytes] = []
        self.attempts: list[int] = []
        self.ids: list[bytes] = []  # one or more each
        self.bodies: list[bytes] = []
        self.nsqds: list[str] = []
        self.failures: list[Failure | None] = []

    def records(self, offset: int, lines: list[bytes]) -> Records:
        return Records(
            bodies=self.bodies,
            offset=offset,
            lines=lines,
            nsqds=self.nsqds,
            failures=self.failures if any(self.failures) else None,
            make_messages=self._messages,
        )

    def _messages(self) -> Messages:
        """NSQ's layout, packed when somebody asks for it: a replay does not."""
        joined = b"".join(self.ids)
        ids = [joined[at : at + ID_BYTES] for at in range(0, len(joined), ID_BYTES)]
        heads = map(_HEADER.pack, map(int, self.timestamps), self.attempts, ids)
        return Messages([head + body for head, body in zip(heads, self.bodies, strict=True)])


def decode_lines(lines: list[bytes], start: int, *, torn: bool = False) -> Iterator[Records]:
    """Records of lines without their ends, the first of which stands at `start`; raises `Damage` behind
    those before the first that is none."""
    run = _decode_together(lines, start)
    if run is None:
        yield from _decode_one_by_one(lines, start, torn=torn)
    else:
        yield run


def _decode_together(lines: list[bytes], start: int) -> Records | None:
    """All lines by few calls, or None when any of them is no record."""
    columns = _Columns()
    try:
        done = _decode_alike(lines, columns)
        if done < len(lines):
            _decode_array(lines[done:] if done else lines, columns)
    except (ValueError, AttributeError, TypeError, KeyError):
        return None  # whatever it is, one of them is no record: which one is found one by one
    return columns.records(start, lines)


def _decode_alike(lines: list[bytes], columns: _Columns) -> int:
    """Runs of lines that differ in ts, id and body only, as our encoder writes them; how many."""
    done = 0
    while done < len(lines):
        first = lines[done]
        body_at = first.find(_BODY_START, _HEAD_BYTES) + len(_BODY_START)
        middle = first[_HEAD_BYTES:body_at]
        count = _count_alike(lines, done, middle) if middle else 0
        if count < _RUN_MIN or not _decode_run(lines[done : done + count], body_at, columns):
            break
        done += count
    return done


def _count_alike(lines: list[bytes], start: int, middle: bytes) -> int:
    for count, line in enumerate(islice(lines, start, None)):
        if not line.startswith(middle, _HEAD_BYTES):
            return count
    return len(lines) - start


def _decode_run(lines: list[bytes], body_at: int, columns: _Columns) -> bool:
    """Lines that have the same between id and body; False when any is not as our encoder writes it.

    The bodies are read as one string, with a character between them that may stand in a string. Each
    is read as it would be alone: no escape goes on behind that character, and none ends the string.
    """
    count = len(lines)
    heads = b"".join([line[:_HEAD_BYTES] for line in lines])
    digits = cut(heads, 0, _HEAD_BYTES, len(LINE_START), _DIGITS, count)
    ids = b"".join(cut(heads, 0, _HEAD_BYTES, _ID_AT, ID_BYTES, count))
    if not _are_heads(heads, count) or not b"".join(digits).isdigit() or not ids.isalnum():
        return False
    if [line[-2:] for line in lines].count(b'"}') != count:
        return False
    texts = _BETWEEN_BODIES.join([line[body_at:-2] for line in lines])
    try:
        together: str = orjson.loads(b'"' + texts + b'"')
    except ValueError:
        return False
    bodies = together.encode("utf-8").split(_BETWEEN_BODIES)
    if len(bodies) != count:
        return False
    record = _decode(lines[0])  # and so are the others
    columns.timestamps += digits
    columns.attempts += [record["attempts"]] * count
    columns.ids.append(ids)
    columns.bodies += bodies
    columns.nsqds += [record["nsqd"]] * count
    columns.failures += [_take_failure(record)] * count
    return True


def _are_heads(heads: bytes, count: int) -> bool:
    """Whether all begin as the shape of a line wants it, and no timestamp begins with a zero."""
    pattern = LINE_START + b"0" * _DIGITS + _ID_START + b"0" * ID_BYTES + b'"'
    fixed = [at for at, byte in enumerate(pattern) if byte != ord("0")]
    first = heads[:_HEAD_BYTES]
    return (
        all(first[at] == pattern[at] for at in fixed)
        and same_in_run(heads, 0, _HEAD_BYTES * count, _HEAD_BYTES, tuple(fixed))
        and b"0" not in heads[len(LINE_START) :: _HEAD_BYTES]
    )


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
    if {*map(len, records)} == {_MEMBERS}:
        columns.failures += [None] * len(records)
    else:
        columns.failures += [_take_failure(record) for record in records]
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
    columns.ids.append("".join(ids).encode("latin-1"))
    columns.timestamps += timestamps
    columns.attempts += attempts
    columns.bodies += bodies
    columns.nsqds += nsqds


def _decode_one_by_one(lines: list[bytes], start: int, *, torn: bool) -> Iterator[Records]:
    records: list[dict[str, Any]] = []
    offset = start
    damage: Damage | None = None
    for line in lines:
        try:
            records.append(_decode(line))
        except ValueError as error:
            reason = "a cut line" if torn else f"a line that is no record ({error})"
            damage = Damage(offset, reason, torn=torn)
            damage.__cause__ = error
            break
        offset += len(line) + 1
    if records:
        columns = _Columns()
        _add(records, columns)
        yield columns.records(start, lines[: len(records)])
    if damage is not None:
        raise damage


def _decode(line: bytes) -> dict[str, Any]:
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
        return str(_decode(start.split(b"\n", 1)[0])["topic"])
    except ValueError:
        return ""
