"""What the figures were taken on, in one line."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def description(folder: Path) -> str:
    """Processor, cores, Python, the filesystem below `folder`, and what else the machine did."""
    return (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, Python"
        f" {platform.python_version()}, {platform.system()} {platform.release()},"
        f" {_filesystem(folder)}, load average {os.getloadavg()[0]:.1f}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _filesystem(folder: Path) -> str:
    """Of the mount that holds the folder: the longest mount point above it."""
    resolved = folder.resolve()
    best, kind = "", "an unknown filesystem"
    for line in Path("/proc/mounts").read_text().splitlines():
        device, mounted, found, *_ = line.split()
        point = mounted.replace("\\040", " ")
        if resolved.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, f"{found} on {device}"
    return kind if not kind.startswith("tmpfs") else f"{kind} (memory, NOT a disk)"
