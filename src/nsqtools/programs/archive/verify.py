"""`nsqtools archive verify`: every checksum and every count, of files that are read whole."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from nsqtools import durable
from nsqtools.archive.examination import Examined, State, examine
from nsqtools.archive.files import MANIFEST_SUFFIX, find_files, open_file
from nsqtools.archive.formats import LINES, NONE, ZSTD
from nsqtools.archive.manifest import (
    MANIFEST_BYTES_MAX,
    decode_manifest,
    manifest_name,
    read_manifest,
)
from nsqtools.archive.scan import Lost
from nsqtools.errors import ArchiveError, StorageError
from nsqtools.options.shown import printable
from nsqtools.programs.archive import shown
from nsqtools.programs.archive.digest import DigestingFile
from nsqtools.programs.archive.each import Each
from nsqtools.programs.archive.ls import as_json
from nsqtools.stores.named import NamedObjects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from typing import BinaryIO

    from nsqtools.archive.files import FoundFile, Remote
    from nsqtools.archive.manifest import Manifest
    from nsqtools.programs.archive.options import VerifyOptions


def run(options: VerifyOptions) -> int:
    """Check; 0 when all is whole, or the code of the gravest thing that was told: 4 damage, 5 a file
    that could not be read. Raises `OptionsError` for a name that is nothing."""
    with NamedObjects(options) as remotes:
        links: list[Path] = []
        each = Each("archive-verify", find_files(options.files, remotes, links), options.progress)
        shown.warn_of_links("archive-verify", links)
        return _verify(options, each)


def _verify(options: VerifyOptions, each: Each) -> int:
    total = _Total()
    for _, found in each.results(_check):
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


def _check(file: FoundFile, on_read: Callable[[int], None]) -> Examined:
    if file.remote is not None:
        return _check_remote(file, file.remote, on_read)
    with open_file(file, may_be_pipe=file.is_named) as opened:
        found = examine(opened, file.name, whole=True, on_read=on_read)
    if file.path is not None:
        compare_with_manifest(found, file.path)
    return found


def _check_remote(file: FoundFile, remote: Remote, on_read: Callable[[int], None]) -> Examined:
    """As of a file on disk; its SHA-256 is made on the way, which saves reading it twice."""
    try:
        noted = remote.sha256()
    except OSError as gone:
        raise StorageError("open", remote.name, gone) from gone
    data = remote.read_beside(MANIFEST_SUFFIX, MANIFEST_BYTES_MAX + 1)
    with open_file(file) as opened:
        read = DigestingFile(opened)
        found = examine(cast("BinaryIO", read), file.name, whole=True, on_read=on_read)
        digest = _digest_of(read, remote.name) if noted or data is not None else ""
    if noted and digest != noted:
        _disagree(found, "what was put", "another SHA-256")
    if data is not None:
        _compare(found, lambda: decode_manifest(data, manifest_name(remote.name)), lambda: digest)
    return found


def _digest_of(read: DigestingFile, name: str) -> str:
    try:
        return read.hexdigest()
    except OSError as error:
        raise StorageError("read", name, error) from error


def compare_with_manifest(found: Examined, path: Path) -> None:
    """What does not agree with the manifest beside the file, if there is one, is damage."""
    beside = path.with_name(manifest_name(path.name))
    _compare(found, lambda: read_manifest(beside), lambda: durable.sha256_of(path))


def _compare(
    found: Examined, read: Callable[[], Manifest | None], sha256: Callable[[], str]
) -> None:
    try:
        said = read()
        reason = "" if said is None else _difference(found, said, sha256)
    except (ArchiveError, StorageError) as error:
        reason = str(error)
    if reason:
        _disagree(found, "what its manifest says", reason)


def _disagree(found: Examined, what: str, reason: str) -> None:
    found.lose(Lost(start=0, end=0, reason=f"not {what}: {reason}", torn=False))


def _difference(found: Examined, said: Manifest, sha256: Callable[[], str]) -> str:
    # Without compression messages that look like records of ours are taken for such.
    has_header = said.compression != NONE.name
    pairs: list[tuple[str, object, object]] = [
        ("format", found.record_format, said.format if has_header else found.record_format),
        ("compression", found.compression, said.compression),
        ("stored bytes", found.stored_bytes, said.stored_bytes),
        ("content bytes", found.content_bytes, said.content_bytes or found.content_bytes),
    ]
    # A newline within a message makes two lines of it, where nothing notes how many there were.
    counted = said.format == LINES.name and found.compression != ZSTD.name
    records = found.records or 0
    pairs.append(("records", records, max(records, said.records) if counted else said.records))
    wrong = [f"{what} {is_now} for {was}" for what, is_now, was in pairs if is_now != was]
    if not wrong and sha256() != said.sha256:
        wrong = ["another SHA-256"]
    return ", ".join(wrong)


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
        tail = f", {found.unfinished_bytes} bytes at its end are no commit yet"
        return "; it is not finished" + (tail if found.unfinished_bytes else "")
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
