"""Objects by names as a command line has them: `s3://bucket/key`, or all whose keys begin so."""

from __future__ import annotations

import contextlib
import io
import threading
from typing import TYPE_CHECKING, Self

from nsqtools.errors import StoreError
from nsqtools.stores.failures import Request
from nsqtools.stores.location import check_key, is_location, parse_location

if TYPE_CHECKING:
    from nsqtools.stores.client import Store
    from nsqtools.stores.objects import ObjectReader, StoredObject
    from nsqtools.stores.options import StoreAccess

# They are listed before the first is read: half a kilobyte each.
OBJECTS_MAX = 1_000_000
_REFUSED = ("AccessDenied", "403")


class NamedObject:
    """One object, which need not be there; nothing is asked of the store before it is read."""

    def __init__(self, store: Store, key: str, stored: StoredObject | None = None) -> None:
        """`stored` is what a list said, and saves a look."""
        self._store = store
        self._key = key
        self._stored = stored

    @property
    def name(self) -> str:
        """Its whole location, with whatever characters the key has."""
        return self._store.location(self._key).url

    @property
    def size_bytes(self) -> int:
        """As it was when it was looked at."""
        return self._stored.size_bytes if self._stored else 0

    def open(self) -> ObjectReader:
        """It, from its start. This or reading raises `FileNotFoundError` when it is gone, and
        `StoreError`."""
        return self._store.open(self._stored or self._key)

    def read_beside(self, suffix: str, most_bytes: int) -> bytes | None:
        """At most so much of the object whose key is this one's and `suffix`; None when there is none.

        Raises `StoreError`.
        """
        try:
            key = check_key(self._key + suffix)
        except ValueError:
            return None  # no store could have it
        try:
            with self._store.open(key) as file:
                return io.BufferedReader(file).read(most_bytes)
        except FileNotFoundError:
            return None

    def sha256(self) -> str:
        """What it was put with; "" where nobody said it. What is read later is what was looked at now.

        Raises `FileNotFoundError` and `StoreError`.
        """
        try:
            self._stored = self._store.head(self._key)
        except ValueError as error:  # of a key that a store has listed, and none could have
            request = Request("head_object", self._store.bucket, self._key)
            failure = request.failed(str(error), is_passing=False)
        else:
            return self._stored.sha256
        raise failure


class NamedObjects:
    """What names lead to, in any number of buckets; each bucket's store is opened once.

    Everything blocks; `close` may be called by any thread, and ends what others wait for.
    """

    def __init__(self, access: StoreAccess) -> None:
        self._access = access
        self._stores: dict[str, Store] = {}
        self._is_closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Reading raises a passing `StoreError` from here on."""
        with self._lock:
            self._is_closed = True
            stores = list(self._stores.values())
        for store in stores:
            store.close()

    def has(self, name: str) -> bool:
        """Whether a name is meant to be in a store."""
        return is_location(name)

    def at(self, name: str) -> NamedObject:
        """What has exactly this name. Raises ValueError for what is no location."""
        location = parse_location(name)
        return NamedObject(self._store_of(location.bucket), location.key)

    def find(self, name: str) -> list[NamedObject]:
        """The object of this name alone, or all whose names begin so, in the order of their keys.

        A key that ends with a slash is a folder's, whether an object has it or not. Raises ValueError
        for what is no location, and `StoreError`.
        """
        location = parse_location(name)
        store, key = self._store_of(location.bucket), location.key
        is_key = key != "" and not key.endswith("/")
        try:
            return _listed(store, key, is_key=is_key)
        except StoreError as refused:
            if not is_key or refused.code not in _REFUSED:
                raise
            # Who may read an object need not be allowed to list.
            with contextlib.suppress(StoreError, FileNotFoundError):
                return [NamedObject(store, key, store.head(key))]
            raise

    def _store_of(self, bucket: str) -> Store:
        from nsqtools.stores.client import store_for_reading  # for nobody who reads files alone

        with self._lock:
            store = self._stores.get(bucket)
            if store is None:
                store = self._stores[bucket] = store_for_reading(self._access, bucket)
            if self._is_closed:
                store.close()
        return store


def _listed(store: Store, prefix: str, *, is_key: bool) -> list[NamedObject]:
    found: list[NamedObject] = []
    for stored in store.list(prefix):
        one = NamedObject(store, stored.key, stored)
        if len(found) >= OBJECTS_MAX:
            reason = f"more than {OBJECTS_MAX} objects have names that begin so"
            hint = "Name them with a longer beginning, in several runs."
            request = Request("list_objects_v2", store.bucket, prefix)
            raise request.failed(reason, is_passing=False, hint=hint)
        if is_key and stored.key == prefix:  # a list begins with it
            return [one]
        found.append(one)
    return found
