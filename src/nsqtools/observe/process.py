"""What a process takes of its machine, as metrics that are read when somebody asks."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nsqtools.observe.counters import Registry

_STATM = Path("/proc/self/statm")
_FILES = Path("/proc/self/fd")


def register(registry: Registry) -> None:
    """Adds the metrics of this process to a registry."""
    started = registry.gauge(
        "nsqtools_process_start_time_seconds", "when its status was first served, since the epoch"
    ).labels()
    started.set(time.time())
    cpu = registry.counter("nsqtools_process_cpu_seconds_total", "time on a processor").labels()
    resident = registry.gauge("nsqtools_process_resident_bytes", "memory in use").labels()
    files = registry.gauge("nsqtools_process_open_files", "file descriptors in use").labels()

    def refresh() -> None:
        cpu.value = time.process_time()
        resident.set(resident_bytes())
        files.set(open_files())

    registry.before_snapshot(refresh)


def resident_bytes() -> int:
    """Memory in use, or where that is not told the most that it ever was."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def open_files() -> int:
    """File descriptors in use, 0 where that is not told."""
    try:
        return len(list(_FILES.iterdir()))
    except OSError:
        return 0
