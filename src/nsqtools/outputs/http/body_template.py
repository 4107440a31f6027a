r"""Bodies by template: JSON in which fields stand for what a message has.

    {"text": "{topic}: {body}"}              within quotes: any text, escaped for a JSON string
    {"sent": {timestamp}, "event": {body}}   outside of them: numbers, and a body that is JSON itself

The template must be JSON itself where its fields are replaced, so whatever a message holds, a request is
JSON of the same shape. Braces of JSON stay as they are; a field is one of the names below in braces, and
another such name within quotes is taken for a mistake (\u007b stands for a brace that is none).

    topic channel id nsqd        within quotes
    timestamp (ns) attempts      anywhere
    body                         within quotes: text in UTF-8; outside: JSON, as it is
    body_base64                  within quotes: any bytes

A body that is not what its place wants is refused; nothing is replaced or left out.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

import orjson

from nsqtools.options import Kind
from nsqtools.outputs.http.batches import Unfit, is_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nsqtools.wire.messages import Messages

    Renderer = Callable[[Messages, int], bytes]

TEMPLATE_LENGTH_MAX = 64 << 10
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_FIELD = re.compile(r"\{([a-z0-9_]+)\}")
# What stands for a field when the template itself is looked at.
_EXAMPLE = {True: "x", False: "null"}


def _escaped(text: str) -> bytes:
    return orjson.dumps(text)[1:-1]


def _id(messages: Messages, at: int) -> bytes:
    return _escaped(messages.ids[at].decode("latin-1"))


def _nsqd(messages: Messages, _: int) -> bytes:
    return _escaped(messages.nsqd.encode("utf-8", "replace").decode("utf-8"))


def _timestamp(messages: Messages, at: int) -> bytes:
    return b"%d" % messages.timestamps[at]


def _attempts(messages: Messages, at: int) -> bytes:
    return b"%d" % messages.attempts[at]


def _text(messages: Messages, at: int) -> bytes:
    try:
        return _escaped(messages.bodies[at].decode("utf-8"))
    except UnicodeDecodeError:
        raise Unfit("the body is not UTF-8, and cannot stand within quotes", "not UTF-8") from None


def _base64(messages: Messages, at: int) -> bytes:
    return base64.b64encode(messages.bodies[at])


def _json(messages: Messages, at: int) -> bytes:
    body = messages.bodies[at]
    if not is_json(body):
        raise Unfit("the body is no JSON, and cannot stand outside of quotes", "not JSON")
    return body


_WITHIN: dict[str, Renderer] = {
    "id": _id,
    "timestamp": _timestamp,
    "attempts": _attempts,
    "nsqd": _nsqd,
    "body": _text,
    "body_base64": _base64,
}
_OUTSIDE: dict[str, Renderer] = {"timestamp": _timestamp, "attempts": _attempts, "body": _json}
_OF_TOPIC = ("topic", "channel")
_NAMES = (*_OF_TOPIC, *_WITHIN)


class BodyTemplate:
    """See the module."""

    def __init__(self, text: str, *, fixed: Mapping[str, str]) -> None:
        """`fixed` are `topic` and `channel`. Raises ValueError with the reason."""
        if len(text) > TEMPLATE_LENGTH_MAX:
            raise ValueError(f"longer than {TEMPLATE_LENGTH_MAX} characters")
        self._fixed = fixed
        self._renderers: list[Renderer] = []
        formats: list[str] = []
        examples: list[str] = []
        at = 0
        for match in _STRING.finditer(text):
            self._read(text[at : match.start()], formats, examples, is_within=False)
            self._read(match[0], formats, examples, is_within=True)
            at = match.end()
        self._read(text[at:], formats, examples, is_within=False)
        self._format = _encoded("".join(formats))
        if not is_json(_encoded("".join(examples))):
            raise ValueError('should be JSON, as in {"text": "{topic}: {body}"}')

    def _read(self, text: str, formats: list[str], examples: list[str], *, is_within: bool) -> None:
        pieces = _FIELD.split(text)
        for at, piece in enumerate(pieces):
            is_field = at % 2 == 1
            formats.append(self._field(piece, is_within) if is_field else piece.replace("%", "%%"))
            examples.append(_EXAMPLE[is_within] if is_field else piece)

    def _field(self, name: str, is_within: bool) -> str:
        if name not in _NAMES:
            known = " ".join(f"{{{one}}}" for one in _NAMES)
            raise ValueError(f"unknown field {{{name}}}, known are {known}")
        if is_within and name in _OF_TOPIC:
            return _escaped(self._fixed[name]).decode("utf-8").replace("%", "%%")
        renderer = (_WITHIN if is_within else _OUTSIDE).get(name)
        if renderer is None:
            raise ValueError(f"{{{name}}} should stand within quotes")
        self._renderers.append(renderer)
        return "%b"

    def render(self, messages: Messages, at: int) -> bytes:
        """The body for a message, by its batch and its number there. Raises Unfit."""
        return self._format % tuple([render(messages, at) for render in self._renderers])


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("should be text in UTF-8") from None


class BodyTemplateKind(Kind[str]):
    """A template of bodies."""

    metavar = "JSON"
    explain = (
        "JSON in which {topic} {channel} {id} {nsqd} {timestamp} {attempts} {body} and {body_base64}"
        " stand for those of a message: within quotes, where they are escaped; {timestamp} {attempts}"
        " and a {body} that is JSON outside of them, too"
    )

    def parse(self, text: str) -> str:
        BodyTemplate(text, fixed={"topic": "topic", "channel": "channel"})
        return text


BODY_TEMPLATE = BodyTemplateKind()
