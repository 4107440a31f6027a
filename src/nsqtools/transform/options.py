"""The options of what is done to messages before an output gets them."""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from nsqtools.options import FOLDER, REGEX, TEXT, Choice, Float, Kind, option, repeated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nsqtools.options import Pattern

NonJson = Literal["drop", "keep"]
NON_JSON: Kind[NonJson] = Choice(("drop", "keep"))
_WHAT = "Which messages, and what of them, in this order"
_IDENTIFIER = r"[^\W\d]\w*"
_HOOK = re.compile(rf"({_IDENTIFIER}(?:\.{_IDENTIFIER})*):({_IDENTIFIER}(?:\.{_IDENTIFIER})*)")


class HookName(NamedTuple):
    """Where a function is found."""

    module: str
    function: str

    def __str__(self) -> str:
        return f"{self.module}:{self.function}"


class HookKind(Kind[HookName]):
    """A function of Python."""

    metavar = "MODULE:FUNCTION"
    explain = "a function of Python by its module, such as mypackage.filters:clean"

    def parse(self, text: str) -> HookName:
        found = _HOOK.fullmatch(text)
        if found is None:
            raise ValueError("should be module:function")
        return HookName(found[1], found[2])


HOOK = HookKind()


@dataclass(frozen=True, kw_only=True)
class TransformOptions:
    """The steps that a run takes, in their order; see the package."""

    sample: float = option(
        Float(minimum=0.0, maximum=1.0),
        default="1",
        help="part of the messages that is taken, 0 to 1, chosen by their ids; the rest is counted and"
        " finished",
        group=_WHAT,
        problem="ERROR: {flag} must be between 0.0 and 1.0",
    )
    grep: Pattern | None = option(
        REGEX, help='only messages in which this is found, such as \'"level":"error"\'', group=_WHAT
    )
    grep_exclude: Pattern | None = option(
        REGEX, help="leave out messages in which this is found", group=_WHAT
    )
    non_json: NonJson | None = option(
        NON_JSON,
        help="what becomes of a message that is no JSON object, where one of the next three asks for"
        " that: it is finished and counted (drop, the default), or goes on as it is (keep)",
        group=_WHAT,
    )
    require_json_field: str | None = option(
        TEXT, help="only messages that have this field", group=_WHAT
    )
    require_json_value: str | None = option(
        TEXT,
        help="only messages in which that field is this text, or this number, exactly",
        group=_WHAT,
    )
    whitelist_json_field: tuple[str, ...] = repeated(
        TEXT, help="keep this field of each message, and no other that is not named so", group=_WHAT
    )
    transform: HookName | None = option(
        HOOK,
        help="function that gets each body as bytes, and returns the bytes to take instead, a list of"
        " bytes for several messages, or None for none; what it raises leaves the message with nsqd;"
        " such as mymodule:clean",
        group=_WHAT,
    )
    transform_path: Path | None = option(
        FOLDER,
        help="folder that --transform may be imported from, such as . for the current one",
        group=_WHAT,
    )

    @property
    def looks_at_json(self) -> bool:
        """Whether messages are to be JSON objects."""
        return self.require_json_field is not None or bool(self.whitelist_json_field)

    @property
    def transforms(self) -> bool:
        """Whether there is any step."""
        filters = self.sample < 1.0 or self.grep is not None or self.grep_exclude is not None
        return filters or self.looks_at_json or self.transform is not None

    def without_transforms(self) -> Self:
        """The same options without any step."""
        return replace(
            self,
            sample=1.0,
            grep=None,
            grep_exclude=None,
            non_json=None,
            require_json_field=None,
            require_json_value=None,
            whitelist_json_field=(),
            transform=None,
            transform_path=None,
        )

    def check_transforms(self) -> Iterator[str]:
        """Flags that have no effect without another."""
        if self.require_json_value is not None and self.require_json_field is None:
            yield "--require-json-value needs --require-json-field"
        if self.non_json is not None and not self.looks_at_json:
            yield "--non-json needs --require-json-field or --whitelist-json-field"
        if self.transform_path is not None and self.transform is None:
            yield "--transform-path needs --transform"
