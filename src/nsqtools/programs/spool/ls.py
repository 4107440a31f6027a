"""`nsqtools spool ls`: the files that wait in a spool, and those that are being written."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive.claims import claim_paths, facts_in
from nsqtools.archive.files import SET_ASIDE
from nsqtools.archive.naming import path_of
from nsqtools.errors import NsqToolsError, OptionsError, StorageError
from nsqtools.options.shown import printable
from nsqtools.outputs.s3.spool import set_aside_in
from nsqtools.programs.archive import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsqtools.archive.claims import ClaimFacts
    from nsqtools.programs.spool.options import SpoolLsOptions

PROGRAM = "spool-ls"
HEADS = ("topic", "channel", "format", "compression", "state", "destination", "size", "age", "file")
_TEXT_COLUMNS = 6
IN_USE, WAITING, DAMAGED = "in use", "waiting", "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A file of a spool. `state`: a running nsq_to_s3 has it in hand (`in use`), or nobody has; or it was
    set aside as damaged and is not uploaded, and only what its name says is known of it."""

    file: str
    topic: str
    channel: str
    format: str
    compression: str
    state: str
    destination: str
    size_bytes: int
    written_s: float
    """When it was written last, in seconds since the epoch."""


def run(options: SpoolLsOptions) -> int:
    """List; 0, or the code of the gravest thing that was told. Raises `OptionsError` for what is no
    folder."""
    exit_code = 0
    files: list[Held] = []
    for folder in folders_of(options.folders):
        for claim in claim_paths(folder):
            try:
                held = look(folder, claim)
            except NsqToolsError as error:
                shown.warn(f"{PROGRAM}: {error}")
                exit_code = max(exit_code, error.exit_code)
            else:
                files += [held] if held is not None else []
        files += filter(None, map(look_aside, set_aside_in(folder)))
    if options.json:
        for each in files:
            shown.say_json(asdict(each))
    elif sys.stdout.isatty():
        _show(files)
    else:
        shown.say(shown.plain(HEADS))
        for each in files:
            shown.say(shown.plain(_row(each, str(each.size_bytes), f"{_age_s(each):.0f}")))
    return exit_code


def folders_of(names: Sequence[str]) -> Iterator[Path]:
    """Raises `OptionsError` naming every one that is no folder, and `StorageError`."""
    folders = [Path(name) for name in dict.fromkeys(names)]
    if wrong := [f"{folder}: no folder" for folder in folders if not _is_folder(folder)]:
        raise OptionsError(wrong)
    yield from folders


def _is_folder(path: Path) -> bool:
    with durable.storage("look at", path):
        return path.is_dir()


def look(folder: Path, claim: Path) -> Held | None:
    """What a claim is of; None when that is gone meanwhile. Raises `StorageError` and `ArchiveError`."""
    facts = facts_in(claim)
    if facts is None:
        return None
    path = path_of(folder, facts.working)
    try:
        found = path.stat()
        is_in_use = durable.is_being_written(claim)
    except (FileNotFoundError, StorageError):
        return None
    except OSError as error:
        raise StorageError("look at", path, error) from error
    return _held(path, facts, is_in_use, found.st_size, found.st_mtime)


def look_aside(path: Path) -> Held | None:
    """A file that was set aside; None when it is gone meanwhile. Raises `StorageError`."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError("look at", path, error) from error
    working, _, _ = path.name.rpartition(SET_ASIDE)
    return Held(
        file=str(path),
        topic=working.rpartition(".")[0],
        channel="",
        format="",
        compression="",
        state=DAMAGED,
        destination="",
        size_bytes=found.st_size,
        written_s=found.st_mtime,
    )


def _held(
    path: Path, facts: ClaimFacts, is_in_use: bool, size_bytes: int, written_s: float
) -> Held:
    return Held(
        file=str(path),
        topic=facts.topic,
        channel=facts.channel,
        format=facts.record_format,
        compression=facts.compression,
        state=IN_USE if is_in_use else WAITING,
        destination=facts.destination,
        size_bytes=size_bytes,
        written_s=written_s,
    )


def _age_s(held: Held) -> float:
    return max(0.0, time.time() - held.written_s)


def _row(held: Held, size: str, age: str) -> list[str]:
    return [
        printable(held.topic),
        printable(held.channel) or shown.NOTHING,
        held.format or shown.NOTHING,
        held.compression or shown.NOTHING,
        held.state,
        printable(held.destination) or shown.NOTHING,
        size,
        age,
        printable(held.file),
    ]


def _show(files: Sequence[Held]) -> None:
    rows = [_row(each, shown.size(each.size_bytes), shown.span(_age_s(each))) for each in files]
    # The last column is as long as it is.
    table = shown.table(HEADS[:-1], [row[:-1] for row in rows], _TEXT_COLUMNS)
    for line, file in zip(table, [HEADS[-1], *[row[-1] for row in rows]], strict=True):
        shown.say(f"{line}  {file}")
    waiting = [each for each in files if each.state == WAITING]
    total = shown.size(sum(each.size_bytes for each in files))
    shown.say(f"{shown.count(len(files), 'file')}, {total}; {len(waiting)} wait for nsq_to_s3")
