"""Completion of words in bash, zsh and fish, by click's protocol.

A shell asks a program for words by running it with `_NSQ_TO_FILE_COMPLETE` (or `_NSQTOOLS_COMPLETE`, and
so on) set; `nsqtools completion SHELL` prints what makes it ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import (
    BashComplete,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

from nsqtools.cli.command import OptionsCommand, completion_variable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nsqtools.cli.base import Program

NAME = "nsqtools"
COMMAND = "completion"


class Bash(BashComplete):
    """bash breaks words at `=`: `--flag=v` comes as three, of which click wants two."""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        return [word for word in args if word != "="], incomplete


SHELLS: Mapping[str, type[ShellComplete]] = {
    "bash": Bash,
    "zsh": ZshComplete,
    "fish": FishComplete,
}


class Programs(click.Group):
    """`nsqtools NAME ...` as a shell completes it."""

    def __init__(self, programs: Mapping[str, Program]) -> None:
        super().__init__(NAME, add_help_option=False)
        self.programs = programs
        shells = click.Argument(["shell"], type=click.Choice(list(SHELLS)))
        help_text = "print what makes a shell complete words"
        self.add_command(click.Command(COMMAND, params=[shells], short_help=help_text))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.programs, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        program = self.programs.get(cmd_name)
        return OptionsCommand(program) if program else super().get_command(ctx, cmd_name)


def complete(programs: Mapping[str, Program]) -> None:
    """Answers the shell that asks, and exits."""
    Programs(programs).main([], prog_name=NAME, complete_var=completion_variable(NAME))


def script(shell: str, programs: Sequence[Program]) -> str:
    """What a shell has to evaluate to complete words of `nsqtools` and of these programs."""
    made = [
        SHELLS[shell](click.Command(name), {}, name, completion_variable(name))
        for name in (NAME, *(program.name for program in programs))
    ]
    # Not their own `source`: bash's looks at the version of a bash that need not be on this machine.
    return "\n".join(one.source_template % one.source_vars() for one in made)


add_completion_class(Bash)
