"""`nsqtools NAME ...`: every program under one name, so that none shadows one that is installed."""

from __future__ import annotations

import sys

from nsqtools import __version__
from nsqtools.cli import demo, file_to_nsq, nsq_to_file, nsqd

TYPE_CHECKING = False
if TYPE_CHECKING:  # as in base.py
    from collections.abc import Sequence

PROGRAMS = {
    module.PROGRAM.name: module.PROGRAM for module in (nsq_to_file, file_to_nsq, nsqd, demo)
}
_OPTIONS_EXIT_CODE = 2


def main(argv: Sequence[str] | None = None) -> None:
    """The console script `nsqtools`."""
    words = sys.argv[1:] if argv is None else list(argv)
    name = words[0] if words else "--help"
    if name in PROGRAMS:
        PROGRAMS[name].main(words[1:])
    elif name in ("--version", "-version"):
        print(f"nsqtools v{__version__}")
    elif name in ("--help", "-help", "-h", "help"):
        print(overview(), end="")
    else:
        from nsqtools.options.arguments import nearest
        from nsqtools.options.shown import quoted

        near = nearest(name, PROGRAMS, prefix="")
        print(f"nsqtools: no program {quoted(name)}{near}", file=sys.stderr)
        print("hint: Run nsqtools alone for the list of programs.", file=sys.stderr)
        sys.exit(_OPTIONS_EXIT_CODE)


def overview() -> str:
    """Every program with one line."""
    width = max(map(len, PROGRAMS))
    lines = ["usage: nsqtools PROGRAM [flags]", "", "Programs:"]
    for name, program in PROGRAMS.items():
        lines.append(f"  {name:<{width}}  {program.headline}")
    lines += ["", "Run nsqtools PROGRAM --help for its flags."]
    return "\n".join(lines) + "\n"
