"""JSON as nsqd and nsqlookupd read and write it, which is not how Python does.

Reading: keys match without regard to case and the last of equal keys wins, `null` leaves a value
as it was, an integer must be written as one (`1000.0` is refused), NaN and Infinity are not JSON,
bytes that are not UTF-8 and lone surrogates become U+FFFD (spec: tcp-protocol, part 3).
Writing: compact, UTF-8, `<`, `>` and `&` escaped.
"""

from __future__ import annotations

import json
import re

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
_SURROGATES = re.compile("[\ud800-\udfff]")
_HTML_ESCAPES = str.maketrans(
    {
        "<": "\\u003c",
        ">": "\\u003e",
        "&": "\\u0026",
        "\u2028": "\\u2028",
        "\u2029": "\\u2029",
    }
)


class MalformedJson(ValueError):  # noqa: N818 - reads as the fact it states
    """Not JSON, or not of the types asked for; callers turn it into the error of their protocol."""


def go_json(value: object) -> bytes:
    """`value` as Go's encoder writes it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_HTML_ESCAPES).encode("utf-8", "replace")


class JsonFields:
    """The members of a JSON object; made with `decode`.

    The typed getters return the default for a member that is absent or `null`, and raise
    MalformedJson for one of another type.
    """

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, object]) -> None:
        self._values = values

    @classmethod
    def decode(cls, body: bytes) -> JsonFields:
        """Read a JSON object or `null`; raise MalformedJson for anything else, however deep."""
        try:
            decoded = json.loads(
                body.decode("utf-8", "replace"),
                object_pairs_hook=tuple,
                parse_constant=_refuse_constant,
            )
        except (ValueError, RecursionError) as error:
            raise MalformedJson(f"not JSON: {error}") from error
        if decoded is None:
            return cls({})
        return cls._from_pairs(decoded)

    @classmethod
    def _from_pairs(cls, decoded: object) -> JsonFields:
        # The hook makes objects tuples, so that they can be told from arrays, which are lists.
        if not isinstance(decoded, tuple):
            raise MalformedJson("not a JSON object")
        values: dict[str, object] = {}
        for key, value in decoded:
            if value is None:
                values.setdefault(_fold(key), None)
            else:
                values[_fold(key)] = value
        return cls(values)

    def __contains__(self, key: str) -> bool:
        """Whether the member is there, be it `null`."""
        return key in self._values

    def _get(self, key: str, default: object) -> object:
        value = self._values.get(key)
        return default if value is None else value

    def text(self, key: str, default: str = "") -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise MalformedJson(f"{key} is not a string")
        return _SURROGATES.sub("\ufffd", value)

    def flag(self, key: str) -> bool:
        value = self._get(key, default=False)
        if not isinstance(value, bool):
            raise MalformedJson(f"{key} is not a boolean")
        return value

    def integer(self, key: str, default: int = 0, *, highest: int = INT64_MAX) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise MalformedJson(f"{key} is not an integer")
        if not -highest - 1 <= value <= highest:
            raise MalformedJson(f"{key} is out of range")
        return value

    def section(self, key: str) -> JsonFields:
        """A member that is itself an object; one without members when it is absent."""
        return JsonFields._from_pairs(self._get(key, ()))

    def sections(self, key: str) -> list[JsonFields]:
        """A member that is an array of objects; empty when it is absent."""
        return [JsonFields._from_pairs(item) for item in self._array(key)]

    def texts(self, key: str) -> list[str]:
        """A member that is an array of strings; empty when it is absent."""
        return [JsonFields({key: item}).text(key) for item in self._array(key)]

    def _array(self, key: str) -> list[object]:
        value = self._get(key, [])
        if not isinstance(value, list):
            raise MalformedJson(f"{key} is not an array")
        return value


def _refuse_constant(name: str) -> float:
    raise MalformedJson(f"{name} is not JSON")


def _fold(key: str) -> str:
    # Go folds these two beyond ASCII: the Kelvin sign (lower() does it) and the long s.
    return key.lower().replace("\u017f", "s")
