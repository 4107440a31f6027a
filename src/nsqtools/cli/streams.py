"""Standard streams that are there: who started us may have closed one (`2>&-`).

Its number would be that of the next file or socket, and what is meant for a log or a reader would be
written into that.
"""

from __future__ import annotations

import io
import os
import sys

_STORAGE_EXIT_CODE = 5


def fill_standard_streams() -> None:
    """Have all three, before anything else is opened. One that was closed answers each use with an error
    (EBADF), as it did; but standard error takes what nobody is to see."""
    filled = []
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            fd = os.open(os.devnull, flags)
            assert fd == number, "the lowest that is free"  # noqa: S101
            os.set_inheritable(fd, True)
            filled.append(number)
    # Without a buffer, of which Python would complain at the end.
    if 1 in filled:
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
    if 2 in filled:
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)


def say(text: str) -> None:
    """Text that was asked for, to standard output. Where that takes no more the process ends: with a
    word, or without one where nobody reads on."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        drop_stdout()
        if not isinstance(error, BrokenPipeError):
            print(f"nsqtools: write standard output: {error.strerror}", file=sys.stderr)
        sys.exit(_STORAGE_EXIT_CODE)


def drop_stdout() -> None:
    """What is left to write goes nowhere: Python would complain once more when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
