"""A bucket, as the rest of nsqtools sees it: `open_store`, then `Store`."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from nsqtools.clock import SystemClock
from nsqtools.errors import OptionsError, StoreError
from nsqtools.stores.connection import Connection
from nsqtools.stores.failures import Request, field_of
from nsqtools.stores.location import Location, check_key
from nsqtools.stores.objects import UNIQUE, ObjectReader, StoredObject, of_head, of_list
from nsqtools.stores.options import StoreAccess, StoreOptions
from nsqtools.stores.upload import Uploader, Wanted, headers_of, same

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from nsqtools.clock import Clock
    from nsqtools.digest import PartSums

_READ_BACK_BYTES = 1 << 20
LIST_PAGE = 1000


def open_store(
    options: StoreOptions, *, bucket: str | None = None, clock: Clock | None = None
) -> Store:
    """The bucket of the options, or another one. Nothing is asked of the store yet.

    A process should have one for all its uploads: `--max-upload-rate` is for what goes through it.
    Raises `OptionsError` without a bucket.
    """
    name = bucket or options.bucket
    if not name:
        raise OptionsError(["--bucket is required"])
    return Store(options, name, clock=clock)


def store_for_reading(access: StoreAccess, bucket: str, *, clock: Clock | None = None) -> Store:
    """A bucket that nothing is put into. Nothing is asked of the store yet."""
    known = {one.name: getattr(access, one.name) for one in fields(StoreAccess)}
    return Store(StoreOptions(**known), bucket, clock=clock)


class Store:
    """One bucket. Every method blocks, and can be called by any number of threads at once.

    All raise `StoreError`, whose `is_passing` says whether another try is worth it, and ValueError for
    a key that none can be. Looking, listing, deleting and reading are tried a few times; `put` is not.
    """

    def __init__(self, options: StoreOptions, bucket: str, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self.bucket = bucket
        self.options = options
        # AWS is told CRC32s. Where the environment names another store, they are taken anew.
        self.part_bytes = options.part_size_bytes if options.endpoint_url else 0
        """Of what size are the parts whose MD5s `put` has a use for; 0: of none."""
        self.connection = Connection(options, clock=self._clock)
        self._uploader = Uploader(self.connection, options, bucket, self._find, self._clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is under way and what waits, in whatever thread: it raises a passing StoreError.
        Reading ends within a moment, an upload with the answer that it waits for.

        An upload in parts that is ended so is not aborted, which `abort_orphans` is for.
        """
        self.connection.close()

    def location(self, key: str) -> Location:
        """Where a key is."""
        return Location(self.bucket, key)

    def put(
        self,
        source: Path,
        key: str,
        *,
        size_bytes: int,
        sha256: str,
        metadata: Mapping[str, str],
        unique: str = "",
        parts: PartSums | None = None,
        content_type: str = "application/octet-stream",
        content_encoding: str = "",
    ) -> None:
        """Upload a finished file under a key that is free: whole or not at all.

        It is read once before it is sent, and refused when its size or `sha256` (in hexadecimal) is
        another. With `parts`, of the same content, it need not be read where the store is known to say
        what it got: what does not fit is not made an object, and then it is read.

        `unique` is what no other file has: an object of the same content that was put with
        another one is another object. Does nothing when the same object is there.

        Raises `FileExistsError` when another has the key, and `StorageError` when the file cannot be
        read. After any other error it may be there or not: calling again finds out.
        """
        known = {**metadata, UNIQUE: unique} if unique else metadata
        headers = headers_of(self.options, known, sha256, content_type, content_encoding)
        wanted = Wanted(
            key=check_key(key),
            size_bytes=size_bytes,
            sha256=sha256.lower(),
            unique=unique,
            headers=headers,
            parts=parts,
        )
        self._uploader.put(source, wanted)

    def replace(self, key: str, data: bytes, *, content_type: str) -> None:
        """Put a small object, in the place of one that has the key; tried a few times."""
        headers = headers_of(self.options, {}, hashlib.sha256(data).hexdigest(), content_type, "")
        request = Request("put_object", self.bucket, check_key(key))
        self.connection.patiently(request, Body=data, **headers)

    def read_small(self, key: str, bytes_max: int) -> bytes:
        """What an object begins with, up to so many bytes; raises `FileNotFoundError`."""
        with self.open(key) as file:
            return file.read(bytes_max) or b""

    def confirm(self, key: str, size_bytes: int, sha256: str) -> None:
        """Return when the object is there: its size, and the SHA-256 that it was put with, are these.

        Where a store keeps no metadata the object is read. Raises `FileNotFoundError` when nothing has
        the key, `StoreError` when what has it is another.
        """
        stored = self.head(key)
        if not self._is_same(stored, size_bytes, sha256.lower(), ""):
            told = f"{stored.size_bytes} bytes, SHA-256 {stored.sha256 or 'unknown'}"
            request = Request("head_object", self.bucket, key)
            raise request.failed(f"it is another object, of {told}", is_passing=False)

    def head(self, key: str) -> StoredObject:
        """What is known of an object; raises `FileNotFoundError`."""
        request = Request("head_object", self.bucket, check_key(key))
        try:
            answer = self.connection.ask(request)
        except StoreError as error:
            failure = self._worded(error, key)
        else:
            # A web page that is there for any key has none.
            field_of(answer, "LastModified", request)
            return of_head(key, answer)
        raise failure

    def _worded(self, error: StoreError, key: str) -> StoreError:
        """A HEAD is refused without a word, say of an expired token. A GET of the same object has it."""
        if error.code not in ("400", "403"):
            return error
        try:
            answer = self.connection.call(
                Request("get_object", self.bucket, key), Range="bytes=0-0"
            )
        except StoreError as worded:
            return worded
        except FileNotFoundError:
            return error
        answer["Body"].close()
        return error

    def is_taken(self, key: str) -> bool:
        """Whether anything has this key; the answer may be old when it is used."""
        try:
            self.head(key)
        except FileNotFoundError:
            return False
        return True

    def delete(self, key: str) -> None:
        """Remove an object; no error when there is none."""
        self.connection.patiently(Request("delete_object", self.bucket, check_key(key)))

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[StoredObject]:
        """The objects whose keys begin with `prefix`, and come behind `after`, in the order of their
        keys' bytes. A page of them is held at a time."""
        request = Request("list_objects_v2", self.bucket)
        more = {"StartAfter": after} if after else {}
        seen: set[str] = set()
        while True:
            page = self.connection.ask(request, Prefix=prefix, MaxKeys=LIST_PAGE, **more)
            field_of(page, "IsTruncated", request)  # what is no list would look like an empty one
            yield from map(of_list, page.get("Contents", ()))
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or not token:
                return
            _check_new(token, seen, request)
            more = {"ContinuationToken": token}

    def open(self, key: str | StoredObject) -> ObjectReader:
        """An object as a seekable file. Raises `FileNotFoundError`; what `head` or `list` gave need
        not be asked for again."""
        stored = self.head(key) if isinstance(key, str) else key
        return ObjectReader(self.connection, self.bucket, stored)

    def abort_orphans(
        self, prefix: str, older_than_s: float, owned: Callable[[str], bool]
    ) -> tuple[str, ...]:
        """Abort uploads in parts that were begun so long ago and that nobody goes on with.

        A store does not say who began an upload, and parts cost money until it is aborted: `owned` is
        asked for each key under `prefix` whether it is one that only we would write. Uploads of this
        `Store` that are under way are left alone. When one was begun is told by the store's clock, so
        a time should be long. Gives the keys; an upload that cannot be aborted for a passing reason is
        left for the next time.
        """
        aborted = []
        for upload in self._unfinished(prefix):
            key, upload_id = str(upload["Key"]), str(upload["UploadId"])
            if self._uploader.is_under_way(upload_id) or not owned(key):
                continue
            if self._age_s(upload) >= older_than_s and self._abort(key, upload_id):
                aborted.append(key)
        return tuple(aborted)

    def _unfinished(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        request = Request("list_multipart_uploads", self.bucket)
        more: dict[str, str] = {}
        seen: set[str] = set()
        while True:
            try:
                page = self.connection.patiently(request, Prefix=prefix, **more)
            except StoreError as error:
                if error.code == "NoSuchUpload":
                    return  # what rclone's server says when there is none
                raise
            # Not every store heeds the prefix.
            uploads = [one for one in page.get("Uploads", ()) if "UploadId" in one]
            yield from (one for one in uploads if one.get("Key", "").startswith(prefix))
            if not page.get("IsTruncated") or not page.get("NextKeyMarker"):
                return
            _check_new(repr((page["NextKeyMarker"], page.get("NextUploadIdMarker"))), seen, request)
            more = {"KeyMarker": page["NextKeyMarker"]}
            if page.get("NextUploadIdMarker"):
                more["UploadIdMarker"] = page["NextUploadIdMarker"]

    def _age_s(self, upload: Mapping[str, Any]) -> float:
        begun = upload.get("Initiated") or datetime.fromtimestamp(self._clock.time(), UTC)
        return self._clock.time() - float(begun.timestamp())

    def _abort(self, key: str, upload_id: str) -> bool:
        request = Request("abort_multipart_upload", self.bucket, key)
        try:
            self.connection.call(request, UploadId=upload_id)
        except StoreError as error:
            if not error.is_passing:
                raise
            return False
        return True

    def _find(self, key: str, size_bytes: int, sha256: str, unique: str) -> bool:
        """Whether this object is there; raises `FileExistsError` when another is."""
        try:
            stored = self.head(key)
        except FileNotFoundError:
            return False
        if not self._is_same(stored, size_bytes, sha256, unique):
            raise FileExistsError(17, "another object has the key", str(self.location(key)))
        return True

    def _is_same(self, stored: StoredObject, size_bytes: int, sha256: str, unique: str) -> bool:
        told = same(stored, size_bytes, sha256, unique)
        return self._read_back(stored) == sha256 if told is None else told

    def _read_back(self, stored: StoredObject) -> str:
        """The SHA-256 of what the store gives."""
        digest = hashlib.sha256()
        with self.open(stored) as file:
            while data := file.read(_READ_BACK_BYTES):
                digest.update(data)
        return digest.hexdigest()


def _check_new(token: str, seen: set[str], request: Request) -> None:
    """Raises StoreError for where another page begins that was asked for already: it would not end."""
    if token in seen:
        reason = "the store gives the same page of the list again and again"
        raise request.failed(reason, is_passing=False)
    seen.add(token)
