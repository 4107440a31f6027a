"""Go's way of writing flags: `-flag v`, `--flag v`, `-flag=v`, `--flag=v`, booleans `-flag`.

Values are only collected here, so that every mistake of a command line can be told at once.
Where Go stops at the first word that is no flag, the rest is read on; `--` ends the flags.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nsqtools.options.fields import variable_of
from nsqtools.options.shown import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nsqtools.options.fields import Option

CONFIG = "config"
_HELP = frozenset({"h", "help"})
_VERSION = "version"


@dataclass(slots=True, kw_only=True)
class Arguments:
    """What a command line says: texts for each flag, the words left over, and its mistakes.

    `meant` are the flags that misspelt ones are taken for.
    """

    values: dict[str, list[str]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    meant: set[str] = field(default_factory=set)
    wants_help: bool = False
    wants_version: bool = False

    @property
    def config(self) -> str | None:
        """The configuration file that was named."""
        named = self.values.get(CONFIG)
        return named[-1] if named else None


def parse_arguments(options: Iterable[Option], argv: Sequence[str], program: str) -> Arguments:
    """Reads a command line; mistakes are collected in the result, nothing is raised."""
    known = {made.flag: made for made in options if not made.positional}
    found = Arguments()
    rest = list(reversed(argv))
    while rest:
        word = rest.pop()
        if word == "--":
            found.words += reversed(rest)
            break
        if not word.startswith("-") or word == "-":
            found.words.append(word)
            continue
        _take_flag(word, rest, known, found, program)
    return found


def _take_flag(
    word: str, rest: list[str], known: dict[str, Option], found: Arguments, program: str
) -> None:
    """Takes one flag, and its value from `rest` (the words to come, last first)."""
    flag, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
    made = known.get(flag)
    if flag in _HELP:
        found.wants_help = True
    elif flag == _VERSION:
        found.wants_version = True
    elif made is None and flag != CONFIG:
        shown = printable(word.partition("=")[0])
        found.problems.append(f"unknown flag {shown}{nearest(flag, known)}")
        found.meant.update(difflib.get_close_matches(flag, list(known), n=1))
        _skip_value(equals, rest)
    elif made is not None and made.is_secret:
        found.problems.append(_refused_secret(f"--{flag}", made.key, made.variable(program)))
        _skip_value(equals, rest)
    elif equals:
        _take_value(made, flag, value, found, program)
    elif made is not None and made.is_bool:
        found.values.setdefault(flag, []).append("true")
    elif rest:
        _take_value(made, flag, rest.pop(), found, program)
    else:
        found.problems.append(f"flag needs an argument: --{flag}")


def _take_value(made: Option | None, flag: str, value: str, found: Arguments, program: str) -> None:
    """Keeps a value, unless it is a setting that is a secret (`--consumer-opt=auth_secret,...`)."""
    key = "" if made is None else made.kind.secret_in(value)
    if key:
        problem = _refused_secret(f"{key} in --{flag}", key, variable_of(program, key))
        found.problems.append(problem)
        found.meant.add(flag)
    else:
        found.values.setdefault(flag, []).append(value)


def _refused_secret(what: str, key: str, variable: str) -> str:
    return (
        f"{what} cannot be given on the command line, where other users can read it: set {variable},"
        f" or {key} in the file of --{CONFIG}"
    )


def _skip_value(equals: str, rest: list[str]) -> None:
    """Passes over what looks like the value of a refused flag: it is no mistake of its own, and it
    may be a secret, which must not be repeated in a message."""
    if not equals and rest and not rest[-1].startswith("-"):
        rest.pop()


def nearest(name: str, known: Iterable[str], *, prefix: str = "--") -> str:
    """`, did you mean --topic?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {prefix}{near[0]}?" if near else ""
