"""`nsqtools NAME ...`: every program under one name, so that none shadows one that is installed."""

from __future__ import annotations

import os
import sys

from nsqtools import __version__
from nsqtools.cli import (
    archive,
    demo,
    file_to_nsq,
    nsq_to_file,
    nsq_to_http,
    nsq_to_s3,
    nsqd,
    seek,
    spool,
)
from nsqtools.cli.streams import fill_standard_streams, say

TYPE_CHECKING = False
if TYPE_CHECKING:  # as in base.py
    from collections.abc import Sequence
    from typing import NoReturn

PROGRAMS = {
    module.PROGRAM.name: module.PROGRAM
    for module in (nsq_to_file, nsq_to_s3, nsq_to_http, file_to_nsq, nsqd, seek, demo)
}
SUITES = {suite.name: suite for suite in (archive.SUITE, spool.SUITE)}
_OPTIONS_EXIT_CODE = 2


def main(argv: Sequence[str] | None = None) -> None:
    """The console script `nsqtools`."""
    fill_standard_streams()
    words = sys.argv[1:] if argv is None else list(argv)
    name = words[0] if words else "--help"
    if "_NSQTOOLS_COMPLETE" in os.environ:
        from nsqtools.cli.completion import complete

        complete(PROGRAMS, SUITES)
    elif name == "completion":
        print_completion(words[1:])
    elif name in PROGRAMS:
        PROGRAMS[name].main(words[1:])
    elif name in SUITES:
        SUITES[name].main(words[1:])
    elif name in ("--version", "-version"):
        say(f"nsqtools v{__version__}\n")
    elif name in ("--help", "-help", "-h", "help"):
        say(overview())
    else:
        from nsqtools.options.arguments import nearest
        from nsqtools.options.shown import quoted

        near = nearest(name, [*PROGRAMS, *SUITES], prefix="")
        refuse(f"no program {quoted(name)}{near}", "Run nsqtools alone for the list of programs.")


def print_completion(words: Sequence[str]) -> None:
    """`nsqtools completion SHELL`, for the programs that are commands of their own, too."""
    from nsqtools.cli.completion import SHELLS, script

    if len(words) != 1 or words[0] not in SHELLS:
        refuse(
            f"name one shell of {', '.join(SHELLS)}",
            'In ~/.bashrc: eval "$(nsqtools completion bash)"; in ~/.zshrc the same with zsh; in fish:'
            " nsqtools completion fish > ~/.config/fish/conf.d/nsqtools.fish",
        )
    own = [program for program in PROGRAMS.values() if not program.command]
    say(script(words[0], own))


def refuse(problem: str, hint: str) -> NoReturn:
    """Tells a mistake on stderr and exits."""
    print(f"nsqtools: {problem}\nhint: {hint}", file=sys.stderr)
    sys.exit(_OPTIONS_EXIT_CODE)


def overview() -> str:
    """Every program with one line."""
    listed = {**PROGRAMS, **SUITES}
    width = max(map(len, listed))
    lines = ["usage: nsqtools PROGRAM [flags]", "", "Programs:"]
    for name, program in listed.items():
        lines.append(f"  {name:<{width}}  {program.headline}")
    lines += ["", "Run nsqtools PROGRAM --help for its flags."]
    lines += ['Words are completed after: eval "$(nsqtools completion bash)" (or zsh, fish).']
    return "\n".join(lines) + "\n"
