"""The text of `--help`, made from the options themselves."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from nsqtools.options.arguments import CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nsqtools.options.fields import Option

WIDTH_MIN = 60
WIDTH_MAX = 100
_COLUMN = 34
_COMMON = "Common"
# What is taken for the sake of others' files and command lines: the last that a reader looks for.
NO_EFFECT = "Without effect here"


def help_text(
    program: str,
    summary: str,
    options: Sequence[Option],
    *,
    usage: str = "",
    examples: Iterable[tuple[str, str]],
    exit_status: Mapping[int, str],
    width: int = WIDTH_MAX,
) -> str:
    """Help for a program; `examples` are (what it does, command) pairs, `width` is in columns."""
    width = max(WIDTH_MIN, min(width, WIDTH_MAX))
    words = next((made for made in options if made.positional), None)
    words_shown = f" {words.flag.upper()}..." if words else ""
    parts = [f"usage: {usage or program} [flags]{words_shown}", "", *textwrap.wrap(summary, width)]
    if words:
        parts += ["", *_entry(words.flag.upper(), words.help, width)]
    for group, members in _groups(options).items():
        parts += ["", f"{group}:"]
        for made in members:
            parts += _entry(_left(made, program), _right(made), width)
        if group == _COMMON:
            parts += _common_flags(program, width)
    if explained := _explained(options, width):
        parts += ["", "How values are written:", *explained]
    parts += ["", *_elsewhere(program, options, width)]
    parts += ["", "EXAMPLE"]
    for what, command in examples:
        parts += [f"  # {what}", *(f"  {line}" for line in command.splitlines())]
    parts += ["", "EXIT STATUS"]
    parts += [f"  {code:<4} {meaning}" for code, meaning in sorted(exit_status.items())]
    return "\n".join(parts) + "\n"


def _groups(options: Iterable[Option]) -> dict[str, list[Option]]:
    """Options by group, in the order in which groups appear; behind them the common ones, and what has
    no effect."""
    groups: dict[str, list[Option]] = {}
    common: list[Option] = []
    for made in options:
        if made.positional:
            continue
        if made.group in ("", _COMMON):
            common.append(made)
        else:
            groups.setdefault(made.group, []).append(made)
    unused = groups.pop(NO_EFFECT, None)
    groups[_COMMON] = common
    if unused:
        groups[NO_EFFECT] = unused
    return groups


def _left(made: Option, program: str) -> str:
    if made.is_secret:
        return made.variable(program)
    if made.is_bool:
        return f"--{made.flag}"
    return f"--{made.flag} {made.kind.metavar}"


def _right(made: Option) -> str:
    notes = []
    if made.is_secret:
        notes.append(f"an environment variable, or {made.key} in the file; never a flag")
    if made.repeat:
        notes.append("repeatable")
    if made.default and not (made.is_bool and made.default == "false"):
        notes.append(f"default {made.default.strip()}")
    return made.help + (f" ({'; '.join(notes)})" if notes else "")


def _entry(left: str, right: str, width: int) -> list[str]:
    lines = textwrap.wrap(right, width - _COLUMN, break_long_words=False, break_on_hyphens=False)
    lines = lines or [""]
    first = f"  {left}"
    if len(first) < _COLUMN - 1:
        head = [first.ljust(_COLUMN) + lines[0]]
        lines = lines[1:]
    else:
        head = [first]
    return head + [" " * _COLUMN + line for line in lines]


def _common_flags(program: str, width: int) -> list[str]:
    lines = _entry(f"--{CONFIG} PATH", "take options from a TOML file", width)
    lines += _entry("--version", f"print {program}'s version and exit", width)
    return lines + _entry("-h, --help", "print this text and exit", width)


def _explained(options: Iterable[Option], width: int) -> list[str]:
    kinds = {made.kind.metavar: made.kind.explain for made in options if made.kind.explain}
    lines = []
    for metavar, explain in sorted(kinds.items()):
        lines += textwrap.wrap(
            f"  {metavar + ' ':<10}{explain}",
            width,
            subsequent_indent=" " * 12,
            break_on_hyphens=False,
        )
    return lines


def _elsewhere(program: str, options: Sequence[Option], width: int) -> list[str]:
    flags = [made for made in options if not made.positional]
    valued = [made for made in flags if not made.is_bool] or flags
    sample = next((made for made in valued if "-" in made.flag and not made.is_secret), valued[0])
    repeated = [made for made in flags if made.repeat]
    parted = "; repeated values parted by commas" if repeated else ""
    for separator, word in (";", "semicolons"), (" ", "spaces"), ("\n", "newlines"):
        named = [f"--{made.flag}" for made in repeated if made.kind.separator == separator]
        parted += f", those of {' and '.join(named)} by {word}" if named else ""
    text = (
        f"-flag and --flag, `v` and `=v` are the same. Each flag is also a key of the --{CONFIG}"
        f" file (--{sample.flag} is {sample.key}) and an environment variable"
        f" ({sample.variable(program)}{parted}). Flags win over the environment,"
        " the environment over the file."
    )
    return textwrap.wrap(text, width, break_on_hyphens=False)
