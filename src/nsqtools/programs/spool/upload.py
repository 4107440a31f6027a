"""`nsqtools spool upload`: what waits in a spool goes to the store, and nothing is consumed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive.claims import claim_paths
from nsqtools.archive.recovery import recover
from nsqtools.errors import StoreError
from nsqtools.options.shown import printable
from nsqtools.outputs.s3.destination import Destinations
from nsqtools.outputs.s3.spool import set_aside_in
from nsqtools.programs.archive import shown
from nsqtools.programs.spool.ls import folders_of

if TYPE_CHECKING:
    from pathlib import Path

    from nsqtools.archive.recovery import Recovered
    from nsqtools.programs.spool.options import SpoolUploadOptions

PROGRAM = "spool-upload"


def run(options: SpoolUploadOptions) -> int:
    """Upload; 0 when nothing is left but what a running nsq_to_s3 has in hand, else 5. Damaged files that
    were set aside are left.

    Raises `OptionsError` for what is no folder, `StorageError` for one that cannot be listed.
    """
    uploaded = failed = in_use = damaged = 0
    with contextlib.closing(Destinations(options)) as known:
        for folder in folders_of(options.folders):
            for claim in claim_paths(folder):
                found = list(recover(folder, claims=[claim], open_destination=known.open))
                in_use += not found and durable.is_taken(claim)
                for each in found:
                    failed += each.failed
                    uploaded += not each.failed
                    _tell(each)
            damaged += _tell_set_aside(folder)
    left = f", {in_use} in use by a running nsq_to_s3" if in_use else ""
    shown.say(f"{shown.count(uploaded, 'file')} done, {failed} failed{left}")
    return StoreError.exit_code if failed or damaged else 0


def _tell_set_aside(folder: Path) -> int:
    """Say what stays, and what to do; how many files it is."""
    found = set_aside_in(folder)
    for path in found:
        what = "damaged, set aside and not uploaded: see `nsqtools archive repair`"
        shown.warn(f"{PROGRAM}: {printable(str(path))}: {what}")
    return len(found)


def _tell(found: Recovered) -> None:
    if found.failed:
        shown.warn(f"{PROGRAM}: {found.path}: {found.reason}")
    elif found.published is None:
        shown.warn(f"{PROGRAM}: {found.path}: not uploaded: {found.reason}")
    else:
        shown.say(f"{found.published}\t{found.records}\t{found.stored_bytes}")
