"""Uploads in parts that a kill has left in the store: their parts cost money until they are aborted.

A store does not say who began an upload. Ours is one of a key that the spool has uploaded anew, whenever
it was begun, and one of a key that only this host would write, when it was begun long ago: another
archiver of this host may be uploading now.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nsqtools.archive.object_names import fixed_prefix
from nsqtools.errors import StoreClosed, StoreError
from nsqtools.observe.log import get_log

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.archive.object_names import ObjectNaming
    from nsqtools.stores.client import Store

log = get_log("spool")

# The largest object takes less, whatever --max-upload-rate says of sense.
ORPHANED_S = 86_400.0
_PART = re.compile("<HOST>|<[A-Z]+>|%.|[^<%]+|.", re.DOTALL)


def key_pattern(naming: ObjectNaming) -> re.Pattern[str] | None:
    """What all keys of this host look like; None where it is not in them."""
    if "<HOST>" not in naming.key_format:
        return None
    parts = _PART.findall(naming.key_format)
    return re.compile("".join([_pattern_of(part, naming.host) for part in parts]))


def _pattern_of(part: str, host: str) -> str:
    if part == "<HOST>":
        return re.escape(host)
    if part == "%%":
        return "%"
    if part.startswith("%") or (part.startswith("<") and part.endswith(">")):
        return "[^/]+"
    return re.escape(part)


def abort_old(store: Store, naming: ObjectNaming) -> int:
    """Abort what this host began long ago; gives how many. Blocks. What the store refuses is told."""
    pattern = key_pattern(naming)
    if pattern is None:
        return 0
    return _abort(
        store,
        fixed_prefix(naming.key_format),
        ORPHANED_S,
        lambda key: pattern.fullmatch(key) is not None,
    )


def abort_of(store: Store, key: str) -> int:
    """Abort all others of a key that is taken now: none of them can succeed. Blocks."""
    return _abort(store, key, 0.0, lambda other: other == key)


def _abort(store: Store, prefix: str, older_than_s: float, owned: Callable[[str], bool]) -> int:
    try:
        aborted = store.abort_orphans(prefix, older_than_s, owned)
    except StoreClosed:
        return 0  # the run ends
    except StoreError as failure:
        more = {"hint": failure.hint} if failure.hint else {}
        log.warning("unfinished uploads cannot be looked for", error=failure, **more)
        return 0
    if aborted:
        log.info("aborted uploads that were cut", uploads=len(aborted), first=aborted[0])
    return len(aborted)
