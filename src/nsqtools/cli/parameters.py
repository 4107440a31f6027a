"""A program's options as click's parameters, made from the same declarations.

click completes words with them in a shell. A run reads its command line with our own parser, so that
all mistakes can be told at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nsqtools.options import Choice, FilePath
from nsqtools.options.arguments import CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsqtools.options import Kind, Option


def parameters_of(options: Iterable[Option]) -> list[click.Parameter]:
    """The parameters of a program, and those of every program; a secret is none."""
    made = [parameter_of(one) for one in options if not one.is_secret]
    return [
        *made,
        click.Option([*spellings(CONFIG), CONFIG], type=click.Path(dir_okay=False)),
        click.Option([*spellings("version"), "version"], is_flag=True),
        click.Option([*spellings("help"), "-h", "help"], is_flag=True),
    ]


def parameter_of(made: Option) -> click.Parameter:
    if made.positional:  # files, whatever else may be written for them
        return click.Argument([made.name], nargs=-1, type=click.Path())
    return click.Option(
        [*spellings(made.flag), made.name],
        type=None if made.is_bool else type_of(made.kind),
        is_flag=made.is_bool,
        multiple=made.repeat,
        help=made.help,
    )


def spellings(flag: str) -> tuple[str, str]:
    """Ours and Go's."""
    return f"--{flag}", f"-{flag}"


def type_of(kind: Kind[Any]) -> click.ParamType[Any]:
    """What click can complete values of: words, files and folders."""
    if isinstance(kind, Choice):
        return click.Choice([str(word) for word in kind.words])
    if isinstance(kind, FilePath):
        return click.Path(file_okay=not kind.folder)
    return click.STRING
