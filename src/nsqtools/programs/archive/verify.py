"""`nsqtools archive verify`: every checksum and every count, of files that are read whole."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nsqtools.archive.examination import Examined, State, examine
from nsqtools.archive.files import find_files, open_file
from nsqtools.errors import ArchiveError
from nsqtools.options.shown import printable
from nsqtools.programs.archive import shown
from nsqtools.programs.archive.each import Each
from nsqtools.programs.archive.ls import as_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nsqtools.archive.files import FoundFile
    from nsqtools.programs.archive.options import VerifyOptions


def run(options: VerifyOptions) -> int:
    """Check; 0 when all is whole, or the code of the gravest thing that was told: 4 damage, 5 a file
    that could not be read. Raises `OptionsError` for a name that is nothing."""
    each = Each("archive-verify", find_files(options.files), options.progress)

    def check(file: FoundFile, on_read: Callable[[int], None]) -> Examined:
        with open_file(file.path, may_be_pipe=file.is_named) as opened:
            return examine(opened, file.name, whole=True, on_read=on_read)

    total = _Total()
    for _, found in each.results(check):
        compare_with_manifest(found)
        total.add(found)
        if found.state is State.DAMAGED:
            each.fail(ArchiveError.exit_code)
        if options.json:
            shown.say_json(_as_json(found))
        else:
            for line in _lines(found):
                shown.say(line)
    if not options.json:
        shown.say(total.line(failed=each.exit_code != 0))
    return each.exit_code


def compare_with_manifest(found: Examined) -> None:
    """Where a manifest beside the file is compared with what was found; writers make none yet. What
    does not agree is to be added with `found.lose`."""


class _Total:
    """All files of a run."""

    def __init__(self) -> None:
        self._files = self._records = self._content_bytes = 0
        self._states: dict[State, int] = {}

    def add(self, found: Examined) -> None:
        self._files += 1
        self._records += found.records or 0
        self._content_bytes += found.content_bytes or 0
        self._states[found.state] = self._states.get(found.state, 0) + 1

    def line(self, *, failed: bool) -> str:
        states = ", ".join(f"{count} {state}" for state, count in sorted(self._states.items()))
        return (
            f"{'FAILED' if failed else 'ok'}: {shown.count(self._files, 'file')} ({states or 'none'}),"
            f" {shown.count(self._records, 'record')}, {self._content_bytes} bytes of content"
        )


def _lines(found: Examined) -> Iterable[str]:
    name = printable(found.name)
    if found.state is State.DAMAGED:
        for lost in found.losses:
            yield f"{name}: damaged: {describe(lost.start, lost.end, lost.reason, lost.records)}"
        left_out = found.losses_count - len(found.losses)
        if left_out:
            yield f"{name}: damaged: {left_out} times more"
    whole = f"whole are {shown.count(found.records or 0, 'record')}"
    kind = f"{found.record_format} {found.compression}"
    yield f"{name}: {found.state}: {kind}, {whole}{_note(found)}"


def describe(start: int, end: int, reason: str, records: int | None) -> str:
    """One damage: what, where, and how much it takes with it."""
    where = f"{reason} at byte {start}"
    if end > start:
        where += f": lost are {shown.count(end - start, 'byte')}"
        where += (
            f", {shown.count(records, 'record')}"
            if records is not None
            else ", and the records in them"
        )
    return where


def _note(found: Examined) -> str:
    if found.state is State.OPEN:
        return f"; it is being written, {found.unfinished_bytes} bytes at its end are no commit yet"
    if found.state is State.FOREIGN:
        return "; not written by nsqtools, so that there is little to check"
    return ""


def _as_json(found: Examined) -> dict[str, Any]:
    made = as_json(found, None)
    del made["gap_before_s"]
    made["unfinished_bytes"] = found.unfinished_bytes
    made["damages"] = [asdict(lost) for lost in found.losses]
    made["damages_count"] = found.losses_count
    return made
