"""Running a command of `nsqtools archive`, in this process or in one of its own."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.archive.helpers import START_NS, batch_of, write_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from nsqtools.wire.messages import Messages

MS = 1_000_000
BODIES = [b"first", b"", "zwölf".encode(), b"a\tb", b"x" * 300, b"last"]
# Two commits, a millisecond from one message to the next.
COMMITS: list[list[Messages]] = [[batch_of(BODIES[:4])], [batch_of(BODIES[4:], 4)]]


class Ran:
    """What a command said."""

    def __init__(self, code: int, out: bytes, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def command(name: str, *words: object) -> list[str]:
    """The argv of a command as a process of its own."""
    return [sys.executable, "-m", "nsqtools", "archive", name, *map(str, words)]


def run_apart(name: str, *words: object, stdin: bytes | None = None) -> Ran:
    done = subprocess.run(
        command(name, *words), input=stdin, capture_output=True, timeout=60, check=False
    )
    return Ran(done.returncode, done.stdout, done.stderr.decode())


def numbered(count: int, size_bytes: int = 20) -> list[list[Messages]]:
    """That many commits of ten messages each."""
    numbers = itertools.count()
    return [
        [batch_of([b"%0*d" % (size_bytes, next(numbers)) for _ in range(10)], at * 10)]
        for at in range(count)
    ]


def noise(count: int) -> list[list[Messages]]:
    """That many commits of ten messages that do not compress below a half."""
    made = random.Random(8)
    return [
        [batch_of([made.randbytes(1500).hex().encode() for _ in range(10)], at * 10)]
        for at in range(count)
    ]


def at_ms(number: int) -> int:
    """The publish time of a message, in ns."""
    return START_NS + number * MS


def archive_of(folder: Path, record_format: str, compression: str, commits: Iterable[Any]) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    return write_file(folder, record_format, compression, list(commits))
