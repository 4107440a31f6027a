"""Completion of words in bash, zsh and fish, by click's protocol.

A shell asks a program for words by running it with `_NSQ_TO_FILE_COMPLETE` (or `_NSQTOOLS_COMPLETE`, and
so on) set; `nsqtools completion SHELL` prints what makes it ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

from nsqtools.cli.command import OptionsCommand, completion_variable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nsqtools.cli.base import Program, Suite

NAME = "nsqtools"
COMMAND = "completion"


class WholeWords(ShellComplete):
    """Where `--flag=v` is one word to the shell, what is offered for it is the whole word, too."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[Any]]:
        found = super().get_completions(args, incomplete)
        flag, equals, _ = incomplete.partition("=")
        if equals and flag.startswith("-"):
            for item in found:
                item.value = f"{flag}={item.value}" if item.type == "plain" else item.value
        return found


class Bash(WholeWords, BashComplete):
    """bash breaks words at `=` unless it is told not to: then `--flag=v` comes as three, of which
    click wants two."""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        return [word for word in args if word != "="], incomplete


class Zsh(WholeWords, ZshComplete):
    """zsh asks with whole words."""


class Fish(WholeWords, FishComplete):
    """fish asks with whole words."""


SHELLS: Mapping[str, type[ShellComplete]] = {"bash": Bash, "zsh": Zsh, "fish": Fish}


class Commands(click.Group):
    """`nsqtools archive COMMAND ...` as a shell completes it."""

    def __init__(self, suite: Suite) -> None:
        super().__init__(suite.name, add_help_option=False, short_help=suite.headline)
        self.suite = suite

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.suite.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        program = self.suite.commands.get(cmd_name)
        return OptionsCommand(program) if program else None


class Programs(click.Group):
    """`nsqtools NAME ...` as a shell completes it."""

    def __init__(self, programs: Mapping[str, Program], suites: Mapping[str, Suite]) -> None:
        super().__init__(NAME, add_help_option=False)
        self.programs = programs
        for suite in suites.values():
            self.add_command(Commands(suite))
        shells = click.Argument(["shell"], type=click.Choice(list(SHELLS)))
        help_text = "print what makes a shell complete words"
        self.add_command(click.Command(COMMAND, params=[shells], short_help=help_text))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.programs, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        program = self.programs.get(cmd_name)
        return OptionsCommand(program) if program else super().get_command(ctx, cmd_name)


def complete(programs: Mapping[str, Program], suites: Mapping[str, Suite]) -> None:
    """Answers the shell that asks, and exits."""
    Programs(programs, suites).main([], prog_name=NAME, complete_var=completion_variable(NAME))


def script(shell: str, programs: Sequence[Program]) -> str:
    """What a shell has to evaluate to complete words of `nsqtools` and of these programs."""
    made = [
        SHELLS[shell](click.Command(name), {}, name, completion_variable(name))
        for name in (NAME, *(program.name for program in programs))
    ]
    # Not their own `source`: bash's looks at the version of a bash that need not be on this machine.
    return "\n".join(one.source_template % one.source_vars() for one in made)


for _shell in SHELLS.values():
    add_completion_class(_shell)
