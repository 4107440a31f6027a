"""Reading ahead in a thread: decompression releases the interpreter, so both processors have work."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

# What may wait: items of about a MiB, or one group of at most some.
ITEMS_AHEAD = 4
_WAIT_S = 0.1
_END_S = 0.5


class _End:
    """What the thread says last: the error that ended it, or None."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def ahead(items: Iterator[T], *, count: int = ITEMS_AHEAD) -> Iterator[T]:
    """The same items, of which up to `count` are made ahead; raises what making them raises.

    Whoever stops early closes this iterator. Then the thread ends with the item that it is at; it is
    waited for a moment, and not longer: an item can be long in coming where most are filtered out.
    """
    made: queue.Queue[T | _End] = queue.Queue(count)
    stop = threading.Event()

    def put(item: T | _End) -> bool:
        while not stop.is_set():
            try:
                made.put(item, timeout=_WAIT_S)
            except queue.Full:
                continue
            return True
        return False

    def make() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as found:  # noqa: BLE001 - raised where the items are taken
            error = found
        put(_End(error))

    thread = threading.Thread(target=make, name="archive-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item = made.get()
            if not isinstance(item, _End):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                return
    finally:
        stop.set()
        thread.join(_END_S)
