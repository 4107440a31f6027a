"""A folder in which everything lies that a neighbour, or a careless hand, may leave there."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

# Somebody who is neither root nor whoever runs the tests.
NEIGHBOUR = 12345
SECRET = b"what only its owner may read"
# Larger than any program may read in a test that waits for it.
SPARSE_BYTES = 1 << 40
Looks = dict[str, tuple[int, int, int, int]]
_ENDINGS = (".log", ".log.gz", ".jsonl.zst", ".log.part", ".part.bad", ".nsq")


def hostile(folder: Path, *, sparse: bool = False) -> Path:
    """Fill a new folder; what needs root is left out without it. `sparse` adds a file of a TiB."""
    folder.mkdir(parents=True)
    secret = folder.parent / "secret"
    secret.write_bytes(SECRET + b"\n")
    for ending in _ENDINGS:
        os.mkfifo(folder / f"pipe{ending}")
        (folder / f"dangling{ending}").symlink_to(folder / "nowhere")
        (folder / f"looping{ending}").symlink_to(f"looping{ending}")
        (folder / f"secret{ending}").symlink_to(secret)
        (folder / f"folder{ending}").mkdir()
        _neighbours(folder / f"neighbours{ending}", b"of a neighbour\n")
        _device(folder / f"device{ending}")
    (folder / "around").symlink_to(folder)
    (folder / "unreadable.log").write_bytes(b"unreadable\n")
    (folder / "unreadable.log").chmod(0)
    (folder / "escape\x1b]0;\x07\n\x1b[31m.log").write_bytes(b"escape\n")
    Path(os.fsdecode(os.fsencode(folder) + b"/not\xff\xfeutf8.log")).write_bytes(b"not utf8\n")
    (folder / "empty.log.zst").touch()
    (folder / "noise.log.gz").write_bytes(os.urandom(5000))
    os.mkfifo(folder / ".nsqtools-1-0123456789abcdef.tmp")
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.open(folder, os.O_RDONLY)  # a path of a socket has some 100 bytes at most
        listening.bind(f"/proc/self/fd/{here}/socket.log")
        os.close(here)
    _claims(folder)
    if sparse:
        with (folder / "sparse.log").open("wb") as file:
            file.truncate(SPARSE_BYTES)
    return folder


def take_names(folder: Path, stem: str, ending: str, count: int) -> None:
    """Plant something under each of the names that files of this stem get first."""
    for number in range(count):
        path = folder / f"{stem}-{number:06d}{ending}"
        if number % 5 == 0:
            os.mkfifo(path)
        elif number % 5 == 1:
            path.symlink_to(folder / "nowhere")
        elif number % 5 == 2:
            path.with_name(path.name + ".part").mkdir()
        elif number % 5 == 3:
            _neighbours(path, b"planted\n")
        else:
            os.mkfifo(path.with_name(path.name + ".part"))


def _claims(folder: Path) -> None:
    """Forged ones: a folder of a neighbour's, a link in the place of ours, and a pipe."""
    theirs = folder / f".nsqtools-{NEIGHBOUR}"
    theirs.mkdir()
    (theirs / "1-00.claim").write_bytes(b"{}\n")
    os.mkfifo(theirs / "2-00.claim")
    if os.geteuid() == 0:
        for path in (*theirs.iterdir(), theirs):
            os.chown(path, NEIGHBOUR, NEIGHBOUR)
    (folder / f".nsqtools-{os.geteuid()}").symlink_to(theirs)


def _neighbours(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    if os.geteuid() == 0:
        os.chown(path, NEIGHBOUR, NEIGHBOUR)


def _device(path: Path) -> None:
    """One that never ends, by its number: /dev/zero."""
    if os.geteuid() == 0:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))


def looks(folder: Path) -> Looks:
    """What is there: of each name its inode, kind and mode, owner and size."""
    found = {}
    for above, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(above, name)
            it = path.lstat()
            size = it.st_size if stat.S_ISREG(it.st_mode) else 0
            found[str(path.relative_to(folder))] = (it.st_ino, it.st_mode, it.st_uid, size)
    return found
