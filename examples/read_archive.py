"""Read an archive with nothing of nsqtools: the standard library, zstandard, and docs/formats.md.

    python examples/read_archive.py FILE...

Prints a message a line: publish time in ns, attempts, id and body; of `lines`, which keep no more, the
body alone. All record formats, in all compressions.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"\x89NSQA\r\n\x1a"
KEYS = {"ts", "id", "attempts", "nsqd", "topic"}
# Publish time, attempts, id, body.
Message = tuple[int | None, int | None, bytes | None, bytes]


def read_archive(data: bytes) -> Iterator[Message]:
    """The messages of a file; raises ValueError where it is damaged."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)  # all members
    elif data[1:4] == b"\x2a\x4d\x18" or data[:4] == b"\x28\xb5\x2f\xfd":
        reader = zstandard.ZstdDecompressor().stream_reader(
            io.BytesIO(data), read_across_frames=True
        )
        data = reader.read()  # all frames; skippable ones are passed over
    if data.startswith(MAGIC):
        return framed(data)
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    return map(jsonl, lines) if lines and is_jsonl(lines[0]) else map(bare, lines)


def framed(data: bytes) -> Iterator[Message]:
    at, start, group = 0, 0, list[Message]()
    while at < len(data):
        if data.startswith(MAGIC, at):  # magic, u16 version, u32 length, JSON, u32 crc32
            start = at = at + 18 + int.from_bytes(data[at + 10 : at + 14], "big")
            continue
        (size,) = struct.unpack_from(">i", data, at)
        if size == -1:  # a commit mark: what stands before it is whole
            if struct.unpack_from(">II", data, at + 4) != (len(group), zlib.crc32(data[start:at])):
                raise ValueError(f"damaged at byte {start}")
            yield from group
            start, group = at + 12, []
            at = start
        else:
            ts, attempts, message_id = struct.unpack_from(">qH16s", data, at + 4)
            group.append((ts, attempts, message_id, data[at + 30 : at + 4 + size]))
            at += 4 + size


def is_jsonl(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and record.keys() >= KEYS


def jsonl(line: bytes) -> Message:
    record = json.loads(line)
    text = record.get("body")
    body = base64.b64decode(record["body_b64"]) if text is None else text.encode()
    return record["ts"], record["attempts"], record["id"].encode("latin-1"), body


def bare(line: bytes) -> Message:
    return None, None, None, line


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for *known, body in read_archive(Path(name).read_bytes()):
            print(*[one for one in known if one is not None], body.decode("utf-8", "replace"))
