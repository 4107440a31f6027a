"""Declaring options: each program's options are one frozen dataclass, and each field says it all.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        sync_interval_s: float = option(DURATION, default="30s", help="...", group="Rotation")
        topic: tuple[str, ...] = repeated(TOPIC, help="topic to archive", group="What")

The flag is made from the field's name without its unit (`sync_interval_s` -> `--sync-interval`),
the configuration key from the flag (`sync_interval`), the environment variable from both
(`NSQ_TO_FILE_SYNC_INTERVAL`). Defaults are written as a user would write them. A class may have
`def check(self) -> Iterable[str]`, which yields the mistakes that concern several options.
"""

# ruff: noqa: A002 - `help` is what every such interface calls it

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

from nsqtools.options.kinds import Bool, Kind, Secret
from nsqtools.options.shown import mask_passwords

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")
_UNIT_SUFFIXES = ("_s", "_bytes", "_ns", "_per_s")
_METADATA_KEY = "nsqtools.option"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of a program.

    `problem` replaces the reason when a value is out of range (NSQ's own words; `{flag}` and
    `{value}` are filled in). `aliases` are further keys of the configuration file.
    """

    kind: Kind[Any]
    help: str
    name: str = ""
    flag: str = ""
    default: str | None = None
    group: str = ""
    repeat: bool = False
    positional: bool = False
    problem: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The key in a configuration file."""
        return self.flag.replace("-", "_")

    @property
    def is_bool(self) -> bool:
        return isinstance(self.kind, Bool)

    @property
    def is_secret(self) -> bool:
        return isinstance(self.kind, Secret)

    def variable(self, program: str) -> str:
        """The environment variable of this option for `program`."""
        return variable_of(program, self.key)

    def show(self, value: Any) -> str:
        """A value as it would be written on a command line; secrets and passwords are masked."""
        if value is None:
            return ""
        values = value if self.repeat else (value,)
        return self.kind.separator.join(mask_passwords(self.kind.render(item)) for item in values)


@overload
def option(
    kind: Kind[T],
    *,
    default: str,
    help: str,
    group: str = "",
    flag: str = "",
    problem: str = "",
    aliases: tuple[str, ...] = (),
) -> T: ...
@overload
def option(
    kind: Kind[T],
    *,
    default: None = None,
    help: str,
    group: str = "",
    flag: str = "",
    problem: str = "",
    aliases: tuple[str, ...] = (),
) -> T | None: ...
def option(
    kind: Kind[T],
    *,
    default: str | None = None,
    help: str,
    group: str = "",
    flag: str = "",
    problem: str = "",
    aliases: tuple[str, ...] = (),
) -> T | None:
    """A field with one value. Without a default it is None, and an empty text means None too."""
    made = Option(
        kind=kind,
        help=help,
        default=default,
        group=group,
        flag=flag,
        problem=problem,
        aliases=aliases,
    )
    value = None if default is None else kind.parse(default)
    return _field(made, value)


def repeated(
    kind: Kind[T],
    *,
    help: str,
    group: str = "",
    flag: str = "",
    aliases: tuple[str, ...] = (),
    positional: bool = False,
) -> tuple[T, ...]:
    """A field with any number of values, () by default; the same value twice counts once.

    With `positional` the values are the words of the command line that belong to no flag; they
    are kept as they come.
    """
    made = Option(
        kind=kind,
        help=help,
        group=group,
        flag=flag,
        aliases=aliases,
        repeat=True,
        positional=positional,
    )
    value: tuple[T, ...] = ()
    return _field(made, value)


def _field(made: Option, value: T) -> T:
    # What can hold a secret is kept out of repr(), so that no log line or traceback shows it.
    metadata = {_METADATA_KEY: made}
    field: T = dataclasses.field(default=value, repr=not made.kind.hidden, metadata=metadata)
    return field


def options_of(options_class: type[Any]) -> tuple[Option, ...]:
    """The options that a class declares, in order; fields made otherwise are not options."""
    found = []
    for field in dataclasses.fields(options_class):
        made = field.metadata.get(_METADATA_KEY)
        if isinstance(made, Option):
            flag = made.flag or flag_of(field.name)
            found.append(dataclasses.replace(made, name=field.name, flag=flag))
    return tuple(found)


def variable_of(program: str, key: str) -> str:
    """The environment variable of a key for `program`."""
    return f"{program}_{key}".upper().replace("-", "_")


def flag_of(field_name: str) -> str:
    """`sync_interval_s` -> `sync-interval`: the unit is in the value that a user writes."""
    # The longest suffix first: `rate_per_s` is `rate`.
    for suffix in sorted(_UNIT_SUFFIXES, key=len, reverse=True):
        if field_name.endswith(suffix):
            field_name = field_name.removesuffix(suffix)
            break
    return field_name.replace("_", "-")


def settings_of(options: Any) -> dict[str, str]:
    """Every option's key and value as a user would write it, secrets masked; for logs, /config."""
    return {made.key: made.show(getattr(options, made.name)) for made in options_of(type(options))}


def checks_of(options: Any) -> Iterable[str]:
    """What the class's own `check` finds wrong; nothing where there is none."""
    check = getattr(options, "check", None)
    return check() if callable(check) else ()
