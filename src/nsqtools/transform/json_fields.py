"""Steps that look at the fields of JSON objects. Pure.

What is kept of an object is cut out of its text: numbers of any size, escapes and the order of fields
stay as they were written, and an object of which all is kept stays byte for byte. Of a field that
stands in an object twice the last one counts, as in Go; both are kept.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Collection

    from nsqtools.transform.options import NonJson
    from nsqtools.transform.steps import Work

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_SPACE = r"[ \t\n\r]*"
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
# A field of what is known to be JSON: its name, and its value where that is not nested.
_FIELD = re.compile(rf'{_SPACE}({_STRING}){_SPACE}:{_SPACE}({_STRING}|[^ \t\n\r"{{\[,}}]+)?')
_SPACES = re.compile(_SPACE)
# Only where a value ends is asked for: whatever is cheap, and makes no number of a million digits.
_SKIPPING = json.JSONDecoder(parse_int=len, parse_float=len)
# Where nesting changes.
_STRING_OR_BRACKET = re.compile(rf"{_STRING}|[\[\]{{}}]", re.DOTALL)
# Nesting that every decoder takes, however deep the stack is that it is called from. orjson takes 1024
# levels, json as many as Python has left of 1000; JSON has no limit, and Go's is 10,000.
_LEVELS = 200


class _Number(str):
    """A number as it is written."""

    __slots__ = ()


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


_WRITTEN = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_refuse)


def object_of(body: bytes) -> dict[str, Any] | None:
    """A body that is a JSON object; None where it is not. Integers beyond 64 bits are inexact."""
    try:
        found = orjson.loads(body)
    except ValueError:  # it has limits that JSON has not: of depth, of halves of surrogates
        found = _written(body)
    return found if isinstance(found, dict) else None


def _written(body: bytes) -> Any:
    """With numbers as they are written; None for what is no JSON. What is nested very deep is null."""
    try:
        text = body.decode("utf-8")
        try:
            return _WRITTEN.decode(text)
        except RecursionError:
            return _WRITTEN.decode(_shallow(text))
    except ValueError:
        return None


def _shallow(text: str) -> str:
    """The same with null for what is nested deeper than some levels, all of which was looked at. Raises
    ValueError where that is no JSON."""
    open_parts: list[list[str]] = [[]]
    depth = at = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        bracket = found[0]
        if bracket in "[{":
            if depth % _LEVELS == _LEVELS - 1:
                open_parts[-1].append(text[at : found.start()])
                open_parts.append([])
                at = found.start()
            depth += 1
        elif bracket in "]}":
            depth -= 1
            if depth % _LEVELS == _LEVELS - 1 and len(open_parts) > 1:
                part = "".join((*open_parts.pop(), text[at : found.end()]))
                _WRITTEN.decode(part)
                open_parts[-1].append("null")
                at = found.end()
    if len(open_parts) > 1:
        raise ValueError("something is not closed")
    return "".join((*open_parts[0], text[at:]))


class Value:
    """What a field must be: this text, or this number."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._number = _exact(text) if _NUMBER.fullmatch(text) else None

    def is_in(self, fields: dict[str, Any], name: str, body: bytes) -> bool:
        """Whether the field of an object has it; `body` is its text."""
        value = fields[name]
        if isinstance(value, str) and not isinstance(value, _Number):
            return value == self._text
        if self._number is None or isinstance(value, bool):
            return False
        if isinstance(value, int):
            return self._number == value
        if isinstance(value, float):  # which has lost what was written
            value = _written(body)[name]
        return isinstance(value, _Number) and _exact(value) == self._number


def _exact(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except InvalidOperation:  # an exponent beyond all bounds
        return None
    return number


class JsonFields:
    """Objects that have a field, with a value; and of these the fields that are kept."""

    def __init__(
        self,
        *,
        non_json: NonJson = "drop",
        field: str | None = None,
        value: str | None = None,
        whitelist: Collection[str] = (),
    ) -> None:
        """Without a `whitelist` all fields are kept."""
        self._keeps_others = non_json == "keep"
        self._field = field
        self._value = None if value is None else Value(value)
        self._whitelist = frozenset(whitelist)

    def apply(self, work: Work) -> None:
        kept: list[int] = []
        for at, body in zip(work.places, work.bodies(), strict=True):
            fields = object_of(body)
            by = self._missing(fields, body)
            if by:
                work.removed[at] = by
                continue
            kept.append(at)
            if fields is not None and self._whitelist and not fields.keys() <= self._whitelist:
                work.changed[at] = only_fields(body, self._whitelist)
        work.places = kept

    def _missing(self, fields: dict[str, Any] | None, body: bytes) -> str:
        """What a body lacks, by the flag that asks for it."""
        if fields is None:
            return "" if self._keeps_others else "non-json"
        if self._field is None:
            return ""
        if self._field not in fields:
            return "require-json-field"
        if self._value is not None and not self._value.is_in(fields, self._field, body):
            return "require-json-value"
        return ""


def only_fields(body: bytes, names: Collection[str]) -> bytes:
    """An object with these fields alone, each as it is written."""
    text = body.decode("utf-8")
    kept: list[str] = []
    at = text.index("{") + 1
    while (field := _FIELD.match(text, at)) is not None:
        name, end = field[1], field.end()
        if field[2] is None:
            end = _behind_nested(text, end)
        if (json.loads(name) if "\\" in name else name[1:-1]) in names:
            kept.append(text[field.start(1) : end])
        at = end if text[end] == "," else _behind(text, end)
        if text[at] != ",":
            break
        at += 1
    return f"{{{','.join(kept)}}}".encode()


def _behind(text: str, at: int) -> int:
    """Where something else than space stands."""
    found = _SPACES.match(text, at)
    return at if found is None else found.end()


def _behind_nested(text: str, at: int) -> int:
    """Where the object or list that begins here has ended."""
    try:
        return _SKIPPING.raw_decode(text, at)[1]
    except RecursionError:
        pass  # several times slower, to any depth
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text, at):
        bracket = found[0]
        if bracket in "[{":
            depth += 1
        elif bracket in "]}":
            depth -= 1
            if not depth:
                return found.end()
    raise AssertionError("it was known to be JSON")
