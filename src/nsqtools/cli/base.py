"""What every program is: a name, an options class, and a `run` that is imported when it is needed.

This module imports next to nothing, so that `--version` answers at once; all that belongs to a
run is in `cli/command.py`.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass

from nsqtools import __version__, ending
from nsqtools.cli.streams import fill_standard_streams, say

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is among what --version need not load
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program. `options` and `run` are `module:name`; examples are (what it does, command).

    `name` begins its messages, its environment variables and its line of version; `command` is
    what a user types, where that is more. `ends_in_order` says that its `run` enters a Lifecycle,
    which takes the signals that came before it. Without `on_loop` its `run` is an ordinary function,
    which SIGTERM interrupts as Ctrl-C does, and which ends as stock tools do when its reader has gone.
    """

    name: str
    headline: str
    summary: str
    options: str
    run: str
    examples: tuple[tuple[str, str], ...]
    command: str = ""
    ends_in_order: bool = True
    on_loop: bool = True

    @property
    def usage(self) -> str:
        """What a user types to run it."""
        return self.command or self.name

    @property
    def version(self) -> str:
        """As NSQ's tools print it."""
        return f"{self.name} v{__version__}"

    def main(self, argv: Sequence[str] | None = None) -> None:
        """The console script: runs the program and exits."""
        fill_standard_streams()
        if self.ends_in_order:
            ending.remember_signals()  # before all that takes time
        elif not self.on_loop:
            ending.interrupt_by_term()
            gc.disable()  # imports make no rubbish: 15 ms of a start; `run_plainly` enables it
        words = sys.argv[1:] if argv is None else list(argv)
        if words in (["--version"], ["-version"]):
            say(f"{self.version}\n")
            return
        try:
            from nsqtools.cli.command import end_hard, execute  # click, and asyncio behind it

            if self.ends_in_order:
                ending.arm(lambda: end_hard(self))
            code = execute(self, words)
        except KeyboardInterrupt:  # one that came before `execute` could answer it
            code = ending.INTERRUPTED
        finally:
            gc.enable()  # where it never came to a run
            ending.arm(
                None
            )  # an end that has begun keeps its bound, while Python waits for threads
        if code == ending.BROKEN_PIPE:
            ending.die_of_broken_pipe()
        sys.exit(code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Programs under one name: `nsqtools NAME COMMAND ...`."""

    name: str
    headline: str
    commands: Mapping[str, Program]

    @property
    def usage(self) -> str:
        """What a user types in front of a command."""
        return f"nsqtools {self.name}"

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Runs a command and exits, or lists them."""
        words = sys.argv[1:] if argv is None else list(argv)
        name = words[0] if words else "--help"
        if name in self.commands:
            self.commands[name].main(words[1:])
        elif name in ("--version", "-version"):
            say(f"{self.name} v{__version__}\n")
        elif name in ("--help", "-help", "-h", "help"):
            say(self.overview())
        else:
            from nsqtools.options.arguments import nearest
            from nsqtools.options.shown import quoted

            problem = f"no command {quoted(name)}{nearest(name, self.commands, prefix='')}"
            print(f"{self.name}: {problem}", file=sys.stderr)
            print(f"hint: Run {self.usage} alone for the list of commands.", file=sys.stderr)
            sys.exit(2)

    def overview(self) -> str:
        """Every command with one line."""
        width = max(map(len, self.commands))
        lines = [f"usage: {self.usage} COMMAND [flags] FILE...", "", "Commands:"]
        for name, program in self.commands.items():
            lines.append(f"  {name:<{width}}  {program.headline}")
        lines += ["", f"Run {self.usage} COMMAND --help for its flags."]
        return "\n".join(lines) + "\n"
