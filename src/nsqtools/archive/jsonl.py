"""Record format `jsonl`: one JSON object a line (docs/formats.md, "jsonl"); it is read by
`jsonl_reading`.

A batch is written with a few calls for all of its lines together: bodies are escaped as one string,
with a character between them that JSON leaves as it is.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

import orjson

from nsqtools.archive.failures import ERROR_LENGTH_MAX, FailedMessages, Failure
from nsqtools.archive.groups import Encoded
from nsqtools.errors import ArchiveError
from nsqtools.wire.cutting import cut

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsqtools.wire.messages import Messages

# DEL is the one character below 128 that JSON does not escape and that text hardly ever holds.
BETWEEN_BODIES = b"\x7f"
LINE_START, LINE_END = b'{"ts":', b'"}\n'
ID_START = b',"id":"'
# Digits of a timestamp in all of the years from 2001 to 2286.
DIGITS = 19
# What JSON writes as 2 bytes, and what it writes as 6.
_SHORT_ESCAPES = b'"\\\b\t\n\f\r'
_LONG_ESCAPES = bytes(set(range(32)) - set(_SHORT_ESCAPES))
_ESCAPE_BYTES_MAX = 6
# Formatting stops at each percent sign of a body: with more of them a message, columns cost less.
_PERCENTS_MAX = 64
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
                together = _escaped_together(messages)
                parts += self._alike(messages, together) or self._by_columns(messages, together)
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

    def _alike(self, messages: Messages, together: bytes | None) -> list[bytes] | None:
        """Lines that differ in ts, id and body only, by one formatting: what stands between two bodies
        takes the place of the character between them. None where that cannot be."""
        attempts = messages.same_attempts
        if attempts is None or together is None or not b"".join(messages.ids).isalnum():
            return None
        template = together.replace(b"%", b"%%")
        if len(template) - len(together) > _PERCENTS_MAX * len(messages):
            return None
        columns = [b""] * (2 * len(messages))
        columns[::2] = _digits(messages.timestamps)
        columns[1::2] = messages.ids
        rest = b'","attempts":%d%bbody":' % (attempts, self._rest(messages))
        first = b"%b%b%b%b%b" % (LINE_START, columns[0], ID_START, columns[1], rest)
        between = b'"}\n{"ts":%b,"id":"%b' + rest.replace(b"%", b"%%") + b'"'
        try:
            others = template.replace(BETWEEN_BODIES, between) % (*columns[2:],)
        except TypeError:
            return None  # a body holds that character, so that there are more places than messages
        return [first, others, b"}\n"]

    def _by_columns(self, messages: Messages, together: bytes | None) -> list[bytes]:
        """Lines of any kind: the columns with what stands between them."""
        count = len(messages)
        texts = [] if together is None else together[1:-1].split(BETWEEN_BODIES)
        if len(texts) == count:
            pairs = [(text, False) for text in texts]
        else:  # a body is no text, or holds the character between them
            pairs = [_text(body) for body in messages.bodies]
        parts = [ID_START] * (7 * count)
        parts[::7] = [LINE_START] * count
        parts[1::7] = _digits(messages.timestamps)
        parts[3::7] = _ids(messages.ids)
        parts[4::7] = self._betweens(messages, [is_base64 for _, is_base64 in pairs])
        parts[5::7] = [text for text, _ in pairs]
        parts[6::7] = [LINE_END] * count
        return parts

    def _rest(self, messages: Messages) -> bytes:
        """What stands behind the attempts."""
        nsqd = orjson.dumps(messages.nsqd.encode("utf-8", "replace").decode("utf-8"))
        if len(nsqd) > NSQD_BYTES_MAX:
            raise ArchiveError(f"the name of an nsqd is longer than {NSQD_BYTES_MAX} bytes")
        return b',"nsqd":%b,"topic":%b,"' % (nsqd, self._topic)

    def _betweens(self, messages: Messages, in_base64: list[bool]) -> list[bytes]:
        """What stands between id and body in each line."""
        rest = self._rest(messages)
        return [
            b'","attempts":%d%b%b":"' % (number, rest, b"body_b64" if is_base64 else b"body")
            for number, is_base64 in zip(messages.attempts, in_base64, strict=True)
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


def _digits(timestamps: list[int]) -> list[bytes]:
    """As JSON writes them."""
    count = len(timestamps)
    listed = orjson.dumps(timestamps)
    if listed[DIGITS + 1 :: DIGITS + 1] == b"," * (count - 1) + b"]":
        return cut(listed, 1, DIGITS + 1, 0, DIGITS, count)
    return listed[1:-1].split(b",")


def _escaped_together(messages: Messages) -> bytes | None:
    """All bodies as one string of JSON; None when any of them is not to be written as text."""
    if messages.has_body_of_more(ALWAYS_TEXT_BYTES_MAX):
        return None
    try:
        return orjson.dumps(BETWEEN_BODIES.join(messages.bodies).decode("utf-8"))
    except UnicodeDecodeError:
        return None


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
