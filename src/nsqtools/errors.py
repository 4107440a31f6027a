"""The error tree. Libraries raise; only `cli/` turns an error into a message and an exit code.

    NsqToolsError
    ├── OptionsError          the user asked for something that cannot be (all mistakes at once)
    ├── ProtocolError         the peer broke the protocol, or answered with an error frame
    │   └── ServerError       an error frame from nsqd
    ├── ConnectionFailed      the network: refused, cut, timed out (worth another try)
    ├── NotSettled            a message can no longer be answered: its connection is gone
    ├── ArchiveError          a file that cannot be read or written as an archive
    │   └── DamagedArchive    cut or damaged: names the file, the offset and what was read before it
    ├── StorageError          the disk refused: path, operation and cause
    ├── StoreError            the object store refused, or cannot be reached: what, where and why
    │   └── StoreClosed       the run ends, and has closed it
    └── DataPathInUse         another process holds the folder

Messages are lower case without a full stop; a `hint` is a sentence that says what to do next.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class NsqToolsError(Exception):
    """Base of every error that nsqtools raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class OptionsError(NsqToolsError):
    """One or more options are wrong; `problems` holds every one of them."""

    exit_code = 2

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class ProtocolError(NsqToolsError):
    """A violation of NSQ's protocol, with the wire code that nsqd answers with.

    `fatal` says whether the connection is closed after the answer (spec: tcp-protocol, 2.1).
    """

    exit_code = 3

    def __init__(self, code: str, description: str = "", *, fatal: bool = True) -> None:
        super().__init__(f"{code} {description}" if description else code)
        self.code = code
        self.description = description
        self.fatal = fatal


class ServerError(ProtocolError):
    """An error frame that nsqd sent."""


class ConnectionFailed(NsqToolsError):  # noqa: N818 - reads as the fact it states
    """The network said no, or nothing; the address is part of the message."""

    exit_code = 3

    def __init__(self, address: str, cause: str) -> None:
        super().__init__(f"{address}: {cause}")
        self.address = address


class HandshakeRefused(ConnectionFailed):
    """Both sides are there, and one wants what the other does not give: TLS, trust, a secret."""


class NotSettled(NsqToolsError):  # noqa: N818
    """A message can no longer be answered: the connection that brought it is gone."""


class ArchiveError(NsqToolsError):
    """A file that cannot be read or written as an archive."""

    exit_code = 4


class DamagedArchive(ArchiveError):  # noqa: N818
    """An archive that is cut or damaged, found while reading.

    `offset` is a byte position in the file as it lies on disk; `records` were read before it.
    """

    def __init__(self, path: Path | str, offset: int, records: int, reason: str) -> None:
        super().__init__(
            f"{path}: {reason} at byte {offset}, after {records} whole records",
            hint="What was read before that byte is sound.",
        )
        self.path = path
        self.offset = offset
        self.records = records
        self.reason = reason


_TOO_FEW_FILES = "Raise the limit on open files: ulimit -n, or LimitNOFILE= in a unit."


class StorageError(NsqToolsError):
    """The disk refused an operation; `errno` is kept so that ENOSPC can be told from EACCES."""

    exit_code = 5

    def __init__(self, operation: str, path: Path | str, cause: OSError) -> None:
        super().__init__(
            f"{operation} {path}: {cause.strerror or cause}",
            hint=_TOO_FEW_FILES if cause.errno in (errno.EMFILE, errno.ENFILE) else "",
        )
        self.operation = operation
        self.path = path
        self.errno = cause.errno

    @property
    def is_full(self) -> bool:
        """Whether there is no room: that passes by itself, when somebody makes some."""
        return self.errno in (errno.ENOSPC, errno.EDQUOT)


class StoreError(NsqToolsError):
    """An object store refused an operation, or cannot be reached.

    With `is_passing` the same call may succeed later by itself: an overload, a lost connection, an
    expired credential. Otherwise somebody has to mend something, and `hint` says what. `code` is the
    store's own word for it (`SlowDown`, `AccessDenied`), "" where there was no answer.
    """

    exit_code = 5

    def __init__(
        self,
        operation: str,
        place: str,
        reason: str,
        *,
        is_passing: bool,
        code: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(f"{operation} {place}: {reason}", hint=hint)
        self.operation = operation
        self.place = place
        self.reason = reason
        self.is_passing = is_passing
        self.code = code


class StoreClosed(StoreError):  # noqa: N818
    """The run ends, and has closed the store: nothing is wrong with that."""

    def __init__(self) -> None:
        super().__init__("use", "the object store", "it is closed", is_passing=True)


class DataPathInUse(NsqToolsError):  # noqa: N818
    """Another process holds the lock of a folder or a file."""

    exit_code = 5

    def __init__(self, path: Path | str) -> None:
        super().__init__(
            f"{path}: in use by another process",
            hint="Stop the other process, or name another folder.",
        )
        self.path = path
