"""Object stores that speak S3: AWS, and the many that do as it does.

`options` says which store, `client` has `Store`: put and confirm, list and read in part. Below it
`connection` asks, `upload` and `body` send, `objects` reads, `failures` says what went wrong, `location`
is where. `named` finds what a command line names, `check` tries everything once, for `--check`. boto3 is
loaded with the first request.
"""

from __future__ import annotations

from nsqtools.stores.client import Store, open_store, store_for_reading
from nsqtools.stores.location import Location, is_location, parse_location
from nsqtools.stores.named import NamedObject, NamedObjects
from nsqtools.stores.objects import ObjectReader, StoredObject
from nsqtools.stores.options import StoreAccess, StoreOptions

__all__ = [
    "Location",
    "NamedObject",
    "NamedObjects",
    "ObjectReader",
    "Store",
    "StoreAccess",
    "StoreOptions",
    "StoredObject",
    "is_location",
    "open_store",
    "parse_location",
    "store_for_reading",
]
