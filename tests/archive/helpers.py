"""Messages, writers and whole files for the tests of the archive."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from nsqtools.archive.claims import Claim, ClaimFacts
from nsqtools.archive.naming import FileNaming
from nsqtools.archive.reader import open_archive
from nsqtools.archive.rotation import RotationPolicy
from nsqtools.archive.writer import ArchiveSpec, ArchiveWriter
from nsqtools.clock import ManualClock
from nsqtools.errors import DamagedArchive
from nsqtools.wire.messages import Messages, encode_payload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsqtools.archive.finishing import Published

FORMATS = ("lines", "jsonl", "framed")
COMPRESSIONS = ("none", "gzip", "zstd")
PAIRS = list(itertools.product(FORMATS, COMPRESSIONS))
NSQD = "127.0.0.1:4150"
START_NS = 1_700_000_000_000_000_000
START_S = 1_700_000_000.0
NAMING = FileNaming(host="host", filename_format="<TOPIC><REV>.log", pid=7)


def payload(number: int, body: bytes, *, ts_ns: int | None = None) -> bytes:
    timestamp = START_NS + number * 1_000_000 if ts_ns is None else ts_ns
    return encode_payload(timestamp, number % 5 + 1, b"%016x" % number, body)


def batch_of(bodies: Sequence[bytes], first: int = 0, nsqd: str = NSQD) -> Messages:
    return Messages([payload(first + at, body) for at, body in enumerate(bodies)], nsqd=nsqd)


def spec(
    folder: Path,
    record_format: str = "lines",
    compression: str = "none",
    *,
    naming: FileNaming = NAMING,
    rotation: RotationPolicy | None = None,
    work_dir: Path | None = None,
    topic: str = "topic",
    level: int | None = None,
    compact: bool = False,
    manifest: bool = False,
) -> ArchiveSpec:
    return ArchiveSpec(
        topic=topic,
        channel="channel",
        host="host",
        record_format=record_format,
        compression=compression,
        level=level,
        compact=compact,
        manifest=manifest,
        output_dir=folder,
        work_dir=work_dir or folder,
        naming=naming,
        rotation=rotation or RotationPolicy(),
    )


def write_file(
    folder: Path, record_format: str, compression: str, commits: Sequence[Sequence[Messages]]
) -> Path:
    """A published file with these commits."""
    writer = ArchiveWriter(
        spec(folder, record_format, compression), clock=ManualClock(time_s=START_S)
    )
    for commit in commits:
        writer.commit(commit)
    (published,) = close(writer)
    return Path(published.location)


def close(writer: ArchiveWriter) -> list[Published]:
    """Seal and publish all that the writer has."""
    writer.close()
    return finish(writer)


def finish(writer: ArchiveWriter) -> list[Published]:
    """Publish all that is sealed."""
    return list(iter(writer.finish, None))


def visible(folder: Path) -> list[Path]:
    """The files below a folder, without the claims."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if not path.parent.name.startswith(".nsqtools-"))


def claims(folder: Path) -> list[Path]:
    """What is left in the folders of claims."""
    return sorted(folder.rglob(".nsqtools-*/*"))


def claimed(
    folder: Path,
    data: bytes | bytearray,
    record_format: str,
    compression: str,
    name: str = "topic-000000.log",
    *,
    output_dir: Path | None = None,
    compact: bool = False,
    manifest: bool = False,
) -> Path:
    """A working file as a dead writer left it, with its claim."""
    facts = ClaimFacts(
        working=name + ".part",
        destination=str(output_dir or folder),
        name=name,
        record_format=record_format,
        compression=compression,
        level=6 if compression == "gzip" else 3,
        compact=compact,
        topic="topic",
        channel="channel",
        host="host",
        created_at=START_S,
        manifest=manifest,
    )
    path = folder / facts.working
    path.parent.mkdir(parents=True, exist_ok=True)
    claim = Claim.take(folder, facts)
    path.write_bytes(data)
    claim.mark_created()
    claim.close()
    return path


def unfinished_file(
    folder: Path, record_format: str, compression: str, commits: Sequence[Sequence[Messages]]
) -> tuple[bytes, list[int]]:
    """The bytes of a file whose writer died, and its size after each commit; it is removed."""
    writer = ArchiveWriter(
        spec(folder, record_format, compression), clock=ManualClock(time_s=START_S)
    )
    ends = []
    path: Path | None = None
    for commit in commits:
        done = writer.commit(commit)
        path = done.created[0] if done.created else path
        assert path is not None
        ends.append(path.stat().st_size)
    writer.abandon()
    assert path is not None
    data = path.read_bytes()
    path.unlink()
    for claim in claims(folder):
        claim.unlink()
    return data, ends


def read_bodies(path: Path, **options: str) -> tuple[list[bytes], DamagedArchive | None]:
    """The bodies that a reader hands out, and the damage it then reports."""
    bodies: list[bytes] = []
    try:
        with open_archive(path, **options) as reader:  # type: ignore[arg-type]
            for batch in reader.batches():
                assert batch.first_record == len(bodies)
                bodies += batch.bodies
    except DamagedArchive as damage:
        return bodies, damage
    return bodies, None


def read_payloads(path: Path, **options: str) -> list[bytes]:
    payloads: list[bytes] = []
    with open_archive(path, **options) as reader:  # type: ignore[arg-type]
        for batch in reader.batches():
            assert batch.messages is not None
            payloads += batch.messages.payloads
    return payloads


any_payload = st.builds(
    encode_payload,
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**16 - 1),
    st.one_of(st.binary(min_size=16, max_size=16), st.from_regex(rb"[0-9a-f]{16}", fullmatch=True)),
    st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode)),
)
any_batch = st.builds(
    Messages,
    st.lists(any_payload, max_size=6),
    nsqd=st.sampled_from(["127.0.0.1:4150", 'odd"\\\n:1', "nsqd-é:4150"]),
)
any_commits = st.lists(
    st.lists(any_batch, min_size=1, max_size=3).filter(
        lambda commit: any(len(found) for found in commit)
    ),
    min_size=1,
    max_size=4,
)
