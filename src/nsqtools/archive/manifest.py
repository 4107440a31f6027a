"""Manifests: a small JSON beside a finished file that says what is in it (docs/formats.md, "Manifests").

    <name>                  the file
    <name>.manifest.json    its manifest

A manifest is made beside the claim before the file is placed, and placed behind the file, when that is
durable. The claim goes after both: so there is no manifest without its file, and a kill in between leaves
a claim by which the next start places it. What it says does not depend on the name that the file got.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from nsqtools import durable
from nsqtools.archive.destination import FileFacts
from nsqtools.archive.files import MANIFEST_SUFFIX
from nsqtools.errors import ArchiveError

if TYPE_CHECKING:
    from pathlib import Path

    from nsqtools.archive.claims import Claim, Placing
    from nsqtools.archive.destination import About, Destination

VERSION = 1
# Of one that we read: ours have less than 2 KiB.
MANIFEST_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a manifest says, in its order; None is not known. Times in ns since the epoch; an id is as in
    `jsonl`: each of its bytes as the character of that number."""

    topic: str
    channel: str
    host: str
    format: str
    compression: str
    records: int
    first_ts: int | None
    first_id: str | None
    last_ts: int | None
    last_id: str | None
    content_bytes: int | None
    stored_bytes: int
    sha256: str

    def encode(self) -> bytes:
        """One line of JSON, of ASCII alone."""
        said = {one.name: getattr(self, one.name) for one in fields(self)}
        text = json.dumps({"manifest": VERSION, **said}, separators=(",", ":"))
        return text.encode("ascii") + b"\n"


def manifest_name(name: str) -> str:
    """The name of a file's manifest."""
    return name + MANIFEST_SUFFIX


def prepare(claim: Claim, placing: Placing, source: Path) -> Placing:
    """Make the manifest of a file that is about to be placed, if its claim wants one; durable on return.

    Gives what is to be noted of the placing. Can be called again. Raises `StorageError`.
    """
    wanted = claim.facts
    if not wanted.manifest:
        return placing
    facts = with_digest(placing.facts, source)
    durable.write_anew(claim.manifest_path, manifest_of(claim.about, facts).encode())
    durable.stamp(claim.manifest_path)
    durable.fsync_directory(claim.manifest_path.parent)
    return replace(placing, facts=facts)


def manifest_of(about: About, facts: FileFacts) -> Manifest:
    """What is said of a file whose digest is known."""
    return Manifest(
        topic=about.topic,
        channel=about.channel,
        host=about.host,
        format=about.record_format,
        compression=about.compression,
        records=facts.records,
        first_ts=facts.first_ts_ns,
        first_id=facts.first_id,
        last_ts=facts.last_ts_ns,
        last_id=facts.last_id,
        content_bytes=facts.content_bytes,
        stored_bytes=facts.size_bytes,
        sha256=facts.sha256 or "",
    )


def with_digest(facts: FileFacts, source: Path) -> FileFacts:
    """The facts with the file's SHA-256. Raises `StorageError`."""
    if facts.sha256 is not None:
        return facts
    return replace(facts, sha256=durable.sha256_of(source))


def is_taken(destination: Destination, name: str, *, with_manifest: bool) -> bool:
    """Whether a file's name, or that of its manifest where it gets one, is taken."""
    if destination.is_taken(name):
        return True
    return with_manifest and destination.is_taken(manifest_name(name))


def place(claim: Claim, name: str, destination: Destination) -> str:
    """Place the manifest of a file that is at its destination under `name`; durable on return.

    Gives why it could not be: somebody took its name in this moment, and keeps it. Can be called again,
    also when an earlier call moved it there. Raises `StorageError`.
    """
    source = claim.manifest_path
    try:
        size_bytes = durable.size_of(source)
    except FileNotFoundError:
        return ""  # none is wanted, or it was moved there
    beside = manifest_name(name)
    facts = FileFacts(size_bytes=size_bytes, records=0, first_ts_ns=None, last_ts_ns=None)
    if destination.wants_digest:
        facts = with_digest(facts, source)
    try:
        destination.place(source, beside, facts)
    except FileExistsError:
        return f"{destination.location(beside)} is somebody else's"
    with contextlib.suppress(FileNotFoundError):  # somebody waited for it, and has taken it away
        destination.confirm(beside, facts)
    return ""


def read_manifest(path: Path) -> Manifest | None:
    """What a manifest says; None when there is none. Raises `StorageError`, and `ArchiveError` for what
    is no manifest."""
    try:
        data = durable.read_small(path, MANIFEST_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    return decode_manifest(data, path)


def take_away(path: Path) -> Manifest | None:
    """Remove the manifest of a file that is about to be replaced, and give what it said; None when there
    is none that can be understood, and it stays. Raises `StorageError`."""
    beside = path.with_name(manifest_name(path.name))
    try:
        found = read_manifest(beside)
    except ArchiveError:
        return None
    if found is not None:
        durable.remove(beside)
    return found


def fitted(said: Manifest, path: Path, compression: str) -> Manifest:
    """The manifest of a file that holds what another one held, of which this was the manifest.

    Raises `StorageError`.
    """
    stored_bytes, sha256 = durable.size_of(path), durable.sha256_of(path)
    return replace(said, compression=compression, stored_bytes=stored_bytes, sha256=sha256)


def write_beside(path: Path, said: Manifest) -> None:
    """Give a file that is at its place a manifest; a name that is taken stays as it is.

    Raises `StorageError`.
    """
    beside = path.with_name(manifest_name(path.name))
    if not durable.is_taken(beside):
        durable.replace_file(beside, said.encode(), mode=0o666)


def decode_manifest(data: bytes, path: Path | str) -> Manifest:
    """What a manifest says, which was read from `path` up to MANIFEST_BYTES_MAX + 1. Raises
    `ArchiveError` for what is none."""
    said: Any = None
    try:
        if len(data) <= MANIFEST_BYTES_MAX:
            said = json.loads(data)
    except (ValueError, RecursionError):
        pass
    if not isinstance(said, dict) or said.get("manifest") != VERSION:
        raise ArchiveError(f"{path}: no manifest, or of a version that is not known here")
    if wrong := [one.name for one in fields(Manifest) if not _is_fit(said.get(one.name), one.type)]:
        raise ArchiveError(f"{path}: its {', '.join(wrong)} is not what it should be")
    members: dict[str, Any] = {one.name: said.get(one.name) for one in fields(Manifest)}
    return Manifest(**members)


def _is_fit(value: object, kind: Any) -> bool:
    """Whether a member is what its field, annotated with `kind`, takes."""
    if value is None:
        return "None" in kind
    return isinstance(value, int if kind.startswith("int") else str) and not isinstance(value, bool)
