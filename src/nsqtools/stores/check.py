"""Trying a store once, for `--check`: one small object is written, read back and removed, and what is
not as it should be is told in words, with the permission that is missing where one is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nsqtools.errors import NsqToolsError, StoreError
from nsqtools.stores.failures import NO_STORE, NoCondition, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nsqtools.stores.client import Store

_CONTENT_BYTES = 2000
_RANGE = slice(500, 1500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one step showed. A step that is not `needed` may fail: `problem` then says what is lost."""

    step: str
    problem: str = ""
    hint: str = ""
    needed: bool = True

    @property
    def is_fine(self) -> bool:
        return not self.problem


def check(store: Store, prefix: str) -> list[Finding]:
    """Write, look, read, read in part, list, write again, remove: all with one object below `prefix`.

    What cannot be tried because the object could not be written is left out. Raises nothing but
    `StorageError`, of the temporary file.
    """
    with _sample() as sample:
        return list(_Trial(store, prefix, sample).findings())


@contextlib.contextmanager
def _sample() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nsqtools-") as folder:
        path = Path(folder) / "check"
        path.write_bytes(os.urandom(_CONTENT_BYTES))
        yield path


class _Trial:
    """The steps, each with what it showed."""

    def __init__(self, store: Store, prefix: str, sample: Path) -> None:
        self._store = store
        self._prefix = prefix
        self._key = f"{prefix}.nsqtools-check-{secrets.token_hex(8)}"
        self._sample = sample
        self._content = sample.read_bytes()
        self._sha256 = hashlib.sha256(self._content).hexdigest()

    def findings(self) -> Iterator[Finding]:
        written = self._tried("write", self._write)
        yield written
        if written.is_fine:
            yield self._tried("look", self._look)
            yield self._tried("read back", self._read)
            yield self._tried("read a range", self._read_range)
        yield self._tried("list", self._list)
        yield self._tried("list unfinished uploads", self._list_uploads, needed=False)
        if written.is_fine:
            yield self._tried("refuse to overwrite", self._overwrite, needed=False)
            yield self._tried("remove", self._remove, needed=False)

    def _tried(self, step: str, try_it: Callable[[], str], *, needed: bool = True) -> Finding:
        """`try_it` gives what is wrong, if anything."""
        try:
            problem, hint = try_it(), ""
        except NsqToolsError as error:
            problem, hint = str(error), error.hint
        except FileNotFoundError:
            problem = f"{self._store.location(self._key)} is not there, though it was written"
            hint = "Is the bucket behind a cache, or does somebody remove objects from it?"
        except FileExistsError:
            problem = (
                f"{self._store.location(self._key)} is said to be there, and was never written"
            )
            hint = NO_STORE
        return Finding(step=step, problem=problem, hint=hint, needed=needed)

    def _write(self) -> str:
        self._store.put(
            self._sample,
            self._key,
            size_bytes=len(self._content),
            sha256=self._sha256,
            metadata={"nsqtools": "check"},
        )
        return ""

    def _look(self) -> str:
        stored = self._store.head(self._key)
        if stored.size_bytes != len(self._content):
            return f"the object has {stored.size_bytes} bytes, not {len(self._content)}"
        if stored.sha256 != self._sha256:
            return "the store keeps no metadata: objects are read back to confirm them"
        return ""

    def _read(self) -> str:
        with self._store.open(self._key) as file:
            return "" if file.read(2 * len(self._content)) == self._content else "other bytes came"

    def _read_range(self) -> str:
        with self._store.open(self._key) as file:
            file.seek(_RANGE.start)
            wanted = self._content[_RANGE]
            return "" if file.read(len(wanted)) == wanted else "other bytes came"

    def _list(self) -> str:
        keys = [stored.key for stored in self._store.list(self._key)]
        return "" if keys in ([self._key], []) else "the list has other keys than were asked for"

    def _list_uploads(self) -> str:
        self._store.abort_orphans(self._prefix, 0, lambda _: False)
        return ""

    def _overwrite(self) -> str:
        """The object once more, which has to be refused."""
        request = Request("put_object", self._store.bucket, self._key, is_conditional=True)
        lost = "the store does not know If-None-Match: two writers of one key may meet"
        try:
            self._store.connection.call(request, Body=self._content, IfNoneMatch="*")
        except FileExistsError:
            return ""
        except NoCondition:
            return lost
        except StoreError as error:
            if error.code == "ConditionalRequestConflict":
                return ""
            raise
        return lost

    def _remove(self) -> str:
        self._store.delete(self._key)
        return "" if not self._store.is_taken(self._key) else "the object is still there"
