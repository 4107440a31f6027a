"""`nsqtools` that stops itself when it is loaded, for a tracer to come: SIGCONT begins its run."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from contextlib import suppress

from nsqtools.cli.main import PROGRAMS, SUITES, main

# What runs load when they begin.
LATER = ("nsqtools.cli.command", "ctypes", "shutil", "uvloop")

if __name__ == "__main__":
    name, *more = sys.argv[1:]
    program = PROGRAMS[name] if name in PROGRAMS else SUITES[name].commands[more[0]]
    for place in (program.options, program.run, *LATER):
        with suppress(ModuleNotFoundError):
            importlib.import_module(place.partition(":")[0])
    os.kill(os.getpid(), signal.SIGSTOP)
    main()
