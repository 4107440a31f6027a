"""What a process knows of its end before it has an event loop, and when the loop no longer helps.

The command line calls `remember_signals` first of all, so that a SIGTERM that comes while modules are
still being imported is not lost and does not kill; `Lifecycle` takes over with `take_signals`. It also
calls `arm` with what ends the process for good. From then on `end_within` bounds what is left to do: a
thread that hangs in an fsync cannot be cancelled, and Python waits for its threads before it exits.
A program that embeds nsqtools does neither, and nothing here touches it.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is among what --version need not load
    from collections.abc import Callable, Iterator
    from types import FrameType

INTERRUPTED = 130
# What a shell says of a process that SIGPIPE has ended.
BROKEN_PIPE = 128 + signal.SIGPIPE
THREAD_NAME = "the hard end"
_remembered: list[int] = []
_end: Callable[[], object] | None = None
_once: Iterator[bool] = iter(())


def remember_signals() -> None:
    """Keep SIGTERM for `take_signals`, and pass over SIGHUP: there is nothing to reload yet.

    A second SIGTERM that nobody has taken ends the process at once with INTERRUPTED. SIGINT stays
    Python's KeyboardInterrupt.
    """
    _remembered.clear()
    signal.signal(signal.SIGTERM, _remember)
    signal.signal(signal.SIGHUP, _pass_over)


def interrupt_by_term() -> None:
    """Let SIGTERM, and SIGHUP of a terminal that is closed, do what Ctrl-C does: raise KeyboardInterrupt,
    so that what was begun is taken back. Under nohup SIGHUP stays without effect."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def die_of_broken_pipe() -> None:
    """End the process as stock tools end that write into a pipe nobody reads: by SIGPIPE."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)


def take_signals() -> list[signal.Signals]:
    """What was remembered; it is asked for once."""
    taken = [signal.Signals(number) for number in _remembered]
    _remembered.clear()
    return taken


def _remember(number: int, _frame: FrameType | None) -> None:
    if _remembered:
        os._exit(INTERRUPTED)
    _remembered.append(number)


def _pass_over(_number: int, _frame: FrameType | None) -> None:
    """Not SIG_IGN, which a program that we start would inherit."""


def arm(end: Callable[[], object] | None) -> None:
    """Let `end_within` call `end`, which should end the process; None disarms it."""
    global _end, _once
    _end, _once = end, iter((True,))


def end_within(seconds: float) -> None:
    """End the process in `seconds` whatever hangs; nothing happens when nobody has armed it.

    It may be called again: the soonest counts, and what was armed is called once.
    """
    import threading

    if _end is not None:
        timer = threading.Timer(seconds, _end_once, (_end, _once))
        timer.name = THREAD_NAME
        timer.daemon = True
        timer.start()


def _end_once(end: Callable[[], object], once: Iterator[bool]) -> None:
    if next(once, False):  # which gives True to one thread
        end()
