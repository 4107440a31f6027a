"""What the demonstration publishes: a log of the user's, one of this machine's, or one made up."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nsqtools.archive.reader import open_archive
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Logs that machines have, the first that can be read and is not tiny is taken.
REAL_LOGS = (
    "/var/log/dpkg.log",
    "/var/log/dnf.log",
    "/var/log/dnf.rpm.log",
    "/var/log/pacman.log",
    "/var/log/apk.log",
    "/var/log/zypper.log",
    "/var/log/install.log",
    "/var/log/syslog",
    "/var/log/messages",
    "/var/log/system.log",
    "/var/log/apt/term.log",
    "/var/log/apt/history.log",
)
REAL_LOG_BYTES_MIN = 4096
LINE_BYTES_MAX = 16 << 20
_PATHS = (
    "/",
    "/index.html",
    "/api/v1/orders",
    "/api/v1/orders/{n}",
    "/static/app.{n}.js",
    "/login",
)
_AGENTS = ("Mozilla/5.0 (X11; Linux x86_64)", "curl/8.11.0", "Go-http-client/2.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogInput:
    """Which log, and how to say so."""

    path: Path
    description: str

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size

    def batches(self) -> Iterator[list[bytes]]:
        """Its lines, without their newlines, batch by batch; raises StorageError, ArchiveError."""
        with open_archive(self.path, record_format="lines", compression="none") as reader:
            for batch in reader.batches():
                yield batch.bodies


def choose_input(wanted: Path | None, lines: int, folder: Path) -> LogInput:
    """The log to publish; one that is made up is written into `folder`. Raises StorageError."""
    if wanted is not None:
        _require_readable(wanted)
        return LogInput(path=wanted, description=str(wanted))
    for name in REAL_LOGS:
        path = Path(name)
        if _is_usable(path):
            return LogInput(path=path, description=f"{path} (a log of this machine)")
    path = folder / "access.log"
    _write_access_log(path, lines)
    return LogInput(path=path, description=f"{path} (made up: this machine has no log to read)")


def _require_readable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as cause:
        raise StorageError("read", path, cause) from cause


def _is_usable(path: Path) -> bool:
    try:
        _require_readable(path)
        return path.stat().st_size >= REAL_LOG_BYTES_MIN
    except (OSError, StorageError):
        return False


def _write_access_log(path: Path, lines: int) -> None:
    rng = random.Random(1)  # noqa: S311 - the same log every time
    began_s = time.time() - lines / 50
    try:
        with path.open("w", encoding="ascii") as file:
            for number in range(lines):
                file.write(_access_line(rng, began_s + number / 50))
    except OSError as cause:
        raise StorageError("write", path, cause) from cause


def _access_line(rng: random.Random, when_s: float) -> str:
    address = f"10.{rng.randrange(4)}.{rng.randrange(256)}.{rng.randrange(256)}"
    stamp = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(when_s))
    path = rng.choice(_PATHS).format(n=rng.randrange(5000))
    status = rng.choice((200, 200, 200, 200, 304, 404, 500))
    return (
        f'{address} - - [{stamp}] "GET {path} HTTP/1.1" {status} {rng.randrange(200, 50_000)}'
        f' "-" "{rng.choice(_AGENTS)}"\n'
    )
