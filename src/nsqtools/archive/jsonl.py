"""Record format `jsonl`: one JSON object a line (docs/formats.md, "jsonl")."""

from __future__ import annotations

import json
import struct
from base64 import b64decode, b64encode
from json.encoder import encode_basestring
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from nsqtools.archive.failures import FailedMessages, Failure
from nsqtools.archive.lines import LineSplitter
from nsqtools.archive.stream import Damage, Records
from nsqtools.wire.messages import ID_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsqtools.wire.messages import Messages

_COMMON = {"ts", "id", "attempts", "nsqd", "topic"}
_FAILURE = {"status", "error", "tries"}
_KEYS = tuple(
    _COMMON | body | failure for failure in (set(), _FAILURE) for body in ({"body"}, {"body_b64"})
)
_COLUMNS = itemgetter("ts", "id", "attempts", "nsqd", "topic")
# As PAYLOAD_HEADER, with the 64 bits of the timestamp as a line writes them: without a sign.
_HEADER = struct.Struct(">QH16s")
_CONTROLS = bytes(set(range(32)) - {10})  # the newline stands between bodies
_TIMESTAMP_MAX = 2**64 - 1
_ATTEMPTS_MAX = 2**16 - 1


class JsonlEncoder:
    """What is the same for a whole batch is written once, as text between the columns."""

    stream_header = b""

    def __init__(self, topic: str) -> None:
        self._topic = encode_basestring(topic)

    def encode(self, batches: Sequence[Messages]) -> bytes:
        lines: list[str] = []
        for messages in batches:
            tail = f',"nsqd":{encode_basestring(messages.nsqd)},"topic":{self._topic}'
            tails = [tail] * len(messages)
            if isinstance(messages, FailedMessages):
                tails = [tail + _failure_text(failure) for failure in messages.failures]
            columns = zip(
                messages.timestamps,
                _id_texts(messages.ids),
                messages.attempts,
                tails,
                _body_texts(messages.bodies),
                strict=True,
            )
            lines += [
                f'{{"ts":{ts},"id":{message_id},"attempts":{attempts}{tail},"body{body}}}\n'
                for ts, message_id, attempts, tail, body in columns
            ]
        # A body was valid UTF-8 when it was decoded, so only a host name could need the handler.
        return "".join(lines).encode("utf-8", "surrogateescape")

    def count_ambiguous(self, batches: Sequence[Messages]) -> int:
        """None: a newline is escaped."""
        return 0


def _failure_text(failure: Failure) -> str:
    error = encode_basestring(failure.error)
    return f',"status":{failure.status},"error":{error},"tries":{failure.tries}'


def _id_texts(ids: list[bytes]) -> list[str]:
    joined = b"".join(ids)
    if joined.isalnum():  # as every nsqd writes them: nothing to escape
        text = joined.decode("ascii")
        return [f'"{text[at : at + ID_BYTES]}"' for at in range(0, len(text), ID_BYTES)]
    return [encode_basestring(message_id.decode("latin-1")) for message_id in ids]


def _body_texts(bodies: list[bytes]) -> list[str]:
    """The rest of each line from its body on: `":"..."` or `_b64":"..."`."""
    joined = b"\n".join(bodies)
    if joined.count(b"\n") == len(bodies) - 1 and len(joined.translate(None, _CONTROLS)) == len(
        joined
    ):
        # Only quotes and backslashes need escaping, so a few calls do for all bodies together.
        escaped = joined.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        try:
            return [f'":"{text}"' for text in escaped.decode("utf-8").split("\n")]
        except UnicodeDecodeError:
            pass  # at least one of them is no text
    return [_body_text(body) for body in bodies]


def _body_text(body: bytes) -> str:
    try:
        return '":' + encode_basestring(body.decode("utf-8"))
    except UnicodeDecodeError:
        return f'_b64":"{b64encode(body).decode("ascii")}"'


def is_ours(line: bytes) -> bool:
    """Whether a line is an object with exactly our members."""
    try:
        _decode(line)
    except ValueError:
        return False
    return True


class JsonlDecoder:
    """Lines to payloads, bodies and the nsqds that delivered them."""

    def __init__(self, record_bytes_max: int) -> None:
        self._splitter = LineSplitter(record_bytes_max)

    def feed(self, data: bytes, offset: int) -> Iterator[Records]:
        lines, start = self._splitter.feed(data, offset)
        if lines:
            yield from _decode_lines(lines, start)

    def finish(self) -> Iterator[Records]:
        line, start = self._splitter.rest()
        if line is not None:
            yield from _decode_lines([line], start, torn=True)


def _decode_lines(lines: list[bytes], start: int, *, torn: bool = False) -> Iterator[Records]:
    run = _decode_together(lines, start)
    if run is None:
        yield from _decode_one_by_one(lines, start, torn=torn)
    else:
        yield run


def _decode_together(lines: list[bytes], start: int) -> Records | None:
    """All lines by one call of the JSON parser, or None when any of them is no record.

    One call must not see other records than a call for each line does. It cannot: a string cannot
    go on behind a line, as it would hold the newline that is put there; and what else could span
    lines or hide two records in one gives another number of records, or a member that is a list
    or an object.
    """
    if not all(line[:1] == b"{" and line[-1:] == b"}" for line in lines):
        return None
    try:
        text = b",\n".join(lines).decode("utf-8")
        records = json.loads(f"[{text}]")
        if len(records) != len(lines):
            return None
        bodies = [_decode_body(record) for record in records]
        headers, nsqds = _decode_columns(records)
        failures = _decode_failures(records)
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, struct.error):
        return None  # whatever it is, one of them is no record: which one is found one by one
    payloads = [header + body for header, body in zip(headers, bodies, strict=True)]
    return Records(payloads=payloads, bodies=bodies, nsqds=nsqds, offset=start, failures=failures)


def _decode_columns(records: list[dict[str, Any]]) -> tuple[list[bytes], list[str]]:
    """The payloads' headers and the nsqds; raises for what `_check` refuses, a column at a time."""
    timestamps, ids, attempts, nsqds, topics = zip(*map(_COLUMNS, records), strict=True)
    if not all(record.keys() in _KEYS for record in records):
        raise ValueError("not the members of a record")
    if {*map(type, timestamps), *map(type, attempts)} != {int}:
        raise ValueError("a number that is none")
    if {*map(type, ids), *map(type, nsqds), *map(type, topics)} != {str}:
        raise ValueError("a member that is no string")
    if set(map(len, ids)) != {ID_BYTES}:
        raise ValueError("id")
    raw_ids = [message_id.encode("latin-1") for message_id in ids]
    return list(map(_HEADER.pack, timestamps, attempts, raw_ids)), list(nsqds)


def _decode_failures(records: list[dict[str, Any]]) -> list[Failure | None] | None:
    """None where no record is one of a dead letter; raises ValueError as `_check` does."""
    if not any("status" in record for record in records):
        return None
    return [_decode_failure(record) for record in records]


def _decode_failure(record: dict[str, Any]) -> Failure | None:
    if "status" not in record:
        return None
    status, error, tries = record["status"], record["error"], record["tries"]
    if type(status) is not int or type(tries) is not int or type(error) is not str:
        raise ValueError("failure")
    return Failure(status=status, error=error, tries=tries)


def _decode_one_by_one(lines: list[bytes], start: int, *, torn: bool) -> Iterator[Records]:
    payloads: list[bytes] = []
    bodies: list[bytes] = []
    nsqds: list[str] = []
    failures: list[Failure | None] = []
    offset = start
    damage: Damage | None = None
    for line in lines:
        try:
            header, body, nsqd, failure = _decode(line)
        except ValueError as error:
            reason = "a cut line" if torn else f"a line that is no record ({error})"
            damage = Damage(offset, reason, torn=torn)
            damage.__cause__ = error
            break
        payloads.append(header + body)
        bodies.append(body)
        nsqds.append(nsqd)
        failures.append(failure)
        offset += len(line) + 1
    if payloads:
        yield Records(
            payloads=payloads,
            bodies=bodies,
            nsqds=nsqds,
            offset=start,
            failures=failures if any(failures) else None,
        )
    if damage is not None:
        raise damage


def _decode(line: bytes) -> tuple[bytes, bytes, str, Failure | None]:
    """The payload's header, the body, the nsqd and the failure of one line; raises `ValueError`."""
    try:
        record = json.loads(line.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    _check(record)
    failure = _decode_failure(record)
    return _decode_header(record), _decode_body(record), record["nsqd"], failure


def _check(record: Any) -> None:
    """Raise `ValueError` unless this is an object with our members, of the right types."""
    if type(record) is not dict or record.keys() not in _KEYS:
        raise ValueError("not the members of a record")
    timestamp, attempts = record["ts"], record["attempts"]
    if type(timestamp) is not int or not 0 <= timestamp <= _TIMESTAMP_MAX:
        raise ValueError("ts")
    if type(attempts) is not int or not 0 <= attempts <= _ATTEMPTS_MAX:
        raise ValueError("attempts")
    body = record["body"] if "body" in record else record["body_b64"]
    texts = (record["id"], record["nsqd"], record["topic"], body)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a member that is no string")
    if len(record["id"]) != ID_BYTES:
        raise ValueError("id")


def _decode_header(record: dict[str, Any]) -> bytes:
    """NSQ's layout up to the body; raises `ValueError`."""
    return _HEADER.pack(record["ts"], record["attempts"], record["id"].encode("latin-1"))


def _decode_body(record: dict[str, Any]) -> bytes:
    text: str | None = record.get("body")
    if text is not None:
        return text.encode("utf-8")
    return b64decode(record["body_b64"], validate=True)
