"""Putting a file into a store: whole, once, and never over another object.

The key is looked at first, and `If-None-Match: *` makes sure where the store knows it: on the PUT, and on
what completes an upload in parts. Elsewhere it is looked at again just before an upload is completed,
which leaves a moment in which two writers of one key could meet. What has the key already is the same
object when size and SHA-256 (our metadata) are: then there is nothing to do, and so a retry after an
answer that was lost neither fails nor uploads again.

What is sent is tied to the SHA-256 by reading the file once before, for that and for what the store
checks; or by the MD5s of its parts, which were taken together with the SHA-256 when it was written.

One try of a PUT, a few of a part: when to try the whole again is for the caller to say. Memory does not
depend on the size: a body is read from the file while it is sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from nsqtools.durable import storage
from nsqtools.errors import NsqToolsError, StorageError, StoreError
from nsqtools.stores.body import Bandwidth, Body, Stretch, sha256_checksum
from nsqtools.stores.connection import TRIES
from nsqtools.stores.failures import NoCondition, Request, field_of
from nsqtools.stores.objects import SHA256, UNIQUE, encode_metadata
from nsqtools.stores.threads import DaemonThreads

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from nsqtools.clock import Clock
    from nsqtools.digest import PartSums
    from nsqtools.stores.connection import Connection
    from nsqtools.stores.objects import StoredObject
    from nsqtools.stores.options import StoreOptions

PARTS_MAX = 10_000
_PART_STEP_BYTES = 1 << 20
# What stores say of content that is not of the MD5 which stands with it.
_OTHER_MD5 = "BadDigest"
_MD5_LENGTH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to stand in the store."""

    key: str
    size_bytes: int
    sha256: str
    unique: str
    headers: Mapping[str, Any]
    parts: PartSums | None = None
    """Checksums of the parts, of when the file was written."""


class InDoubt(StoreError):  # noqa: N818 - it is what the upload is
    """Whether an upload was completed is not known: the store cannot be asked."""


class OtherBytes(StoreError):  # noqa: N818 - it is what the store has got
    """The store has got other bytes than were meant for it."""


class Uploader:
    """Uploads into one bucket; used by any number of threads at once."""

    def __init__(
        self,
        connection: Connection,
        options: StoreOptions,
        bucket: str,
        find: Callable[[str, int, str, str], bool],
        clock: Clock,
    ) -> None:
        """`find` is given key, size, SHA-256 and what is unique, and says whether that object is there;
        raises FileExistsError when it is another."""
        self._connection = connection
        self._options = options
        self._bucket = bucket
        self._find = find
        self._clock = clock
        self._bandwidth = Bandwidth(options.max_upload_rate_bytes, clock.monotonic())
        self._lock = threading.Lock()
        self._under_way: set[str] = set()
        self._sends_condition = True
        self._etags_are_md5 = False

    def is_under_way(self, upload_id: str) -> bool:
        """Whether an upload in parts is one of this process that goes on."""
        with self._lock:
            return upload_id in self._under_way

    def put(self, source: Path, wanted: Wanted) -> None:
        """See `Store.put`. What is there already may be gone here."""
        try:
            file: io.FileIO = source.open("rb", buffering=0)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self._was_put(wanted):
                return
            raise StorageError("open", source, error) from error
        try:
            self._check_size(file, source, wanted)
            if self._is_there(wanted):
                return
            if wanted.size_bytes < self._options.multipart_threshold_bytes:
                self._put_whole(Stretch(file, source, 0, wanted.size_bytes), wanted)
            else:
                self._put_parts(file, source, wanted)
        finally:
            with contextlib.suppress(OSError):  # of what was only read it is no news
                file.close()

    def _was_put(self, wanted: Wanted) -> bool:
        """Whether an earlier call did it. Raises `StoreError`."""
        try:
            return self._is_there(wanted)
        except FileExistsError:
            return False

    def _is_found(self, wanted: Wanted) -> bool:
        return self._find(wanted.key, wanted.size_bytes, wanted.sha256, wanted.unique)

    def _check_size(self, file: io.FileIO, source: Path, wanted: Wanted) -> None:
        with storage("stat", source):
            size = os.fstat(file.fileno()).st_size
        if size != wanted.size_bytes:
            self._refuse(wanted, f"{source} has {size} bytes, not {wanted.size_bytes}")

    def _check_content(self, whole: hashlib._Hash, source: Path, wanted: Wanted) -> None:
        if whole.hexdigest() != wanted.sha256:
            self._refuse(wanted, f"{source} is not what it was: its SHA-256 is another")

    def _check_file(self, file: io.FileIO, source: Path, wanted: Wanted) -> None:
        whole = hashlib.sha256()
        Stretch(file, source, 0, wanted.size_bytes).take_checksums(whole, crc32=True)
        self._check_content(whole, source, wanted)

    def _refuse(self, wanted: Wanted, reason: str) -> None:
        raise self._request("put_object", wanted).failed(reason, is_passing=False)

    def _request(self, method: str, wanted: Wanted, *, is_conditional: bool = False) -> Request:
        return Request(method, self._bucket, wanted.key, is_conditional)

    def _is_there(self, wanted: Wanted) -> bool:
        """Whether there is nothing to do; raises FileExistsError when another has the key."""
        try:
            return self._is_found(wanted)
        except StoreError as error:
            # Who may write but not list is not told of what is not there. AWS keeps the condition.
            if error.code in ("403", "AccessDenied") and self._connection.is_aws:
                return False
            raise

    # In one request

    def _put_whole(self, stretch: Stretch, wanted: Wanted) -> None:
        known = self.known_sums(wanted)
        if known is None:
            whole = hashlib.sha256()
            stretch.take_checksums(whole, crc32=self._connection.is_aws)
            self._check_content(whole, stretch.path, wanted)
        else:
            stretch.take_known(*known)
        if self._connection.is_aws:
            stretch.checksums = sha256_checksum(wanted.sha256)
        try:
            answer = self._conditionally(
                "put_object",
                wanted,
                lambda: {
                    **wanted.headers,
                    **stretch.checksums,
                    "ContentLength": stretch.size_bytes,
                    "Body": Body(stretch, self._take),
                },
            )
        except FileExistsError:
            self._settle(wanted)
            return
        except StoreError as error:
            if stretch.is_unread and error.code == _OTHER_MD5:
                self._check_file(stretch.file, stretch.path, wanted)
            raise
        try:
            request = self._request("put_object", wanted)
            self._check_etag(answer, stretch, request, must_fit=stretch.is_unread)
        except StoreError:
            # It has our name on it, and would be taken for the right one.
            with contextlib.suppress(NsqToolsError):
                self._connection.patiently(self._request("delete_object", wanted))
            if stretch.is_unread:  # the network's fault, or that of the disk since it was written
                self._check_file(stretch.file, stretch.path, wanted)
            raise

    def _settle(self, wanted: Wanted) -> None:
        """The key was taken meanwhile: by ourselves, it may be, in a try whose answer was lost. Raises
        FileExistsError when it was not."""
        if not self._is_found(wanted):
            request = self._request("put_object", wanted)
            raise request.failed("an object came and went", is_passing=True) from None

    def _conditionally(
        self, method: str, wanted: Wanted, parameters: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """One try, with the condition unless this store has shown that it does not know it."""
        if self._sends_condition:
            request = self._request(method, wanted, is_conditional=True)
            try:
                return self._call(request, {**parameters(), "IfNoneMatch": "*"})
            except NoCondition:
                self._sends_condition = False
        return self._call(self._request(method, wanted), parameters())

    def _call(self, request: Request, parameters: dict[str, Any]) -> dict[str, Any]:
        body = parameters.get("Body")
        try:
            return self._connection.call(request, **parameters)
        except StoreError:
            if isinstance(body, Body) and body.failure is not None:
                raise body.failure from None
            raise

    def _take(self, wanted: int) -> int:
        """Waits until so many bytes may go out, or fewer."""
        size = self._bandwidth.largest_read(wanted)
        self._connection.wait(self._bandwidth.reserve(size, self._clock.monotonic()))
        return size

    def _check_etag(
        self,
        answer: Mapping[str, Any],
        stretch: Stretch,
        request: Request,
        *,
        must_fit: bool = False,
    ) -> None:
        """That the store has got what was sent, where it names that by its MD5.

        Most do, unless they encrypt: it is held against one only when it was seen to fit before. With
        `must_fit` nothing else was sent to check it by, and the next upload sends that again.
        """
        etag = str(answer.get("ETag", "")).strip('"').lower()
        encrypted = answer.get("ServerSideEncryption", "AES256") != "AES256"
        is_md5 = len(etag) == _MD5_LENGTH and not encrypted
        if not stretch.md5 or not (is_md5 or must_fit):
            return
        if etag == stretch.md5:
            self._etags_are_md5 = True
        elif self._etags_are_md5 or must_fit:
            self._etags_are_md5 = self._etags_are_md5 and not must_fit
            reason = "the store has got other bytes than were sent"
            raise OtherBytes(request.operation, request.place, reason, is_passing=True)

    # In parts

    def _put_parts(self, file: io.FileIO, source: Path, wanted: Wanted) -> None:
        algorithm = {"ChecksumAlgorithm": "CRC32"} if self._connection.is_aws else {}
        request = self._request("create_multipart_upload", wanted)
        answer = self._connection.patiently(request, **wanted.headers, **algorithm)
        upload_id = str(field_of(answer, "UploadId", request))
        with self._lock:
            self._under_way.add(upload_id)
        try:
            parts = _Parts(self, file, source, wanted, upload_id)
            sent = parts.send()
            if parts.known is None:
                self._check_content(parts.whole, source, wanted)
            if not self._complete(wanted, upload_id, sent):
                self._abort(wanted, upload_id)
        except InDoubt:
            raise
        except BaseException as error:
            self._abort(wanted, upload_id)
            if isinstance(error, OtherBytes):
                # By the network, or it was not read before it was sent.
                self._check_file(file, source, wanted)
            raise
        finally:
            with self._lock:
                self._under_way.discard(upload_id)

    def _abort(self, wanted: Wanted, upload_id: str) -> None:
        """Best effort: what is left is an orphan. An object that it became is not touched."""
        with contextlib.suppress(NsqToolsError, OSError):
            request = self._request("abort_multipart_upload", wanted)
            self._connection.call(request, UploadId=upload_id)

    def part_size(self, size_bytes: int) -> int:
        """The size asked for, or what keeps an object of this size within PARTS_MAX parts."""
        least = -(-size_bytes // PARTS_MAX)
        rounded = -(-least // _PART_STEP_BYTES) * _PART_STEP_BYTES
        return max(self._options.part_size_bytes, rounded)

    @property
    def concurrency(self) -> int:
        """Parts of one object that are uploaded at once."""
        return self._options.upload_concurrency

    def known_sums(self, wanted: Wanted) -> tuple[str, ...] | None:
        """The MD5s of the parts from when the file was written. They do, without another reading, where
        the store has shown that it names what it got by its MD5; None where it is to be read."""
        parts = wanted.parts
        if parts is None or self._connection.is_aws or not self._etags_are_md5:
            return None
        size = self.part_size(wanted.size_bytes)
        fits = parts.part_bytes == size and len(parts.md5s) == -(-wanted.size_bytes // size)
        return parts.md5s if fits else None

    def begin_part(self, stretch: Stretch, whole: hashlib._Hash) -> None:
        """Its checksums, and its share of that of the whole."""
        stretch.take_checksums(whole, crc32=self._connection.is_aws)

    def send_part(
        self,
        wanted: Wanted,
        upload_id: str,
        number: int,
        stretch: Stretch,
        ended: threading.Event,
    ) -> dict[str, Any]:
        """Upload a part, with a few tries; gives what completing asks for.

        A part that arrived as other bytes spoils the upload: not every store lets one be replaced.
        """
        request = self._request("upload_part", wanted)
        spoilt = threading.Event()

        def take(size: int) -> int:
            if ended.is_set():
                raise request.failed("another part failed", is_passing=True)
            return self._take(size)

        def send() -> dict[str, Any]:
            # The store takes the MD5 of a part for its ETag: asked for once more it costs as much again.
            by_etag = stretch.is_unread or (self._etags_are_md5 and bool(stretch.md5))
            answer = self._call(
                request,
                {
                    **({} if by_etag else stretch.checksums),
                    "UploadId": upload_id,
                    "PartNumber": number,
                    "ContentLength": stretch.size_bytes,
                    "Body": Body(stretch, take),
                },
            )
            try:
                self._check_etag(answer, stretch, request, must_fit=by_etag)
            except StoreError:
                spoilt.set()
                raise
            field_of(answer, "ETag", request)
            return answer

        answer = self._connection.tried(
            send, is_wanted=lambda: not (ended.is_set() or spoilt.is_set())
        )
        part: dict[str, Any] = {"PartNumber": number, "ETag": answer["ETag"]}
        if "ChecksumCRC32" in answer:
            part["ChecksumCRC32"] = answer["ChecksumCRC32"]
        return part

    def _complete(self, wanted: Wanted, upload_id: str, parts: list[dict[str, Any]]) -> bool:
        """Make an object of the parts. After an answer that is none the store is asked for the object:
        it is there, or the upload is completed again. Raises InDoubt when it cannot be asked.

        False when the object is there, but perhaps not from these parts.
        """
        parameters = {"UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
        for attempt in range(TRIES):
            if not self._connection.is_aws and self._is_there(wanted):
                return False
            try:
                self._conditionally("complete_multipart_upload", wanted, lambda: parameters)
                return True
            except FileExistsError:
                self._settle(wanted)
                return False
            except StoreError as error:
                if not error.is_passing:
                    raise
                failure = error
            if self._was_completed(wanted):
                return False
            if attempt < TRIES - 1:
                self._connection.wait_after(attempt)
        raise failure

    def _was_completed(self, wanted: Wanted) -> bool:
        try:
            return self._is_found(wanted)
        except StoreError as error:
            request = self._request("complete_multipart_upload", wanted)
            reason = f"it is not known whether it was: {error.reason}"
            raise InDoubt(request.operation, request.place, reason, is_passing=True) from None


class _Parts:
    """The parts of one object on their way, a few at once, begun in their order."""

    def __init__(
        self, uploader: Uploader, file: io.FileIO, source: Path, wanted: Wanted, upload_id: str
    ) -> None:
        self._uploader = uploader
        self._file = file
        self._source = source
        self._wanted = wanted
        self._upload_id = upload_id
        self._ended = threading.Event()
        self.known = uploader.known_sums(wanted)
        self.whole = hashlib.sha256()

    def send(self) -> list[dict[str, Any]]:
        """All of them; raises what the first that failed did, when none is under way any more."""
        sent: list[dict[str, Any]] = []
        waiting: set[Future[dict[str, Any]]] = set()
        with DaemonThreads(self._uploader.concurrency, "part") as threads:
            try:
                for number, stretch in enumerate(self._stretches(), start=1):
                    # One more than are sent at once: its checksums are taken meanwhile.
                    while len(waiting) > self._uploader.concurrency:
                        waiting = self._settle(waiting, sent)
                    if self.known is None:
                        self._uploader.begin_part(stretch, self.whole)
                    waiting.add(threads.submit(self._send, number, stretch))
                while waiting:
                    waiting = self._settle(waiting, sent)
            finally:
                self._ended.set()
                for future in waiting:
                    future.cancel()
        return sorted(sent, key=lambda part: int(part["PartNumber"]))

    def _settle(
        self, waiting: set[Future[dict[str, Any]]], sent: list[dict[str, Any]]
    ) -> set[Future[dict[str, Any]]]:
        """Wait until one at least is done; raises what it did."""
        done, left = wait(waiting, return_when=FIRST_COMPLETED)
        sent += [future.result() for future in done]
        return left

    def _send(self, number: int, stretch: Stretch) -> dict[str, Any]:
        return self._uploader.send_part(self._wanted, self._upload_id, number, stretch, self._ended)

    def _stretches(self) -> Iterator[Stretch]:
        size = self._uploader.part_size(self._wanted.size_bytes)
        for offset in range(0, self._wanted.size_bytes, size):
            left = self._wanted.size_bytes - offset
            stretch = Stretch(self._file, self._source, offset, min(size, left))
            if self.known is not None:
                stretch.take_known(self.known[offset // size])
            yield stretch


def headers_of(
    options: StoreOptions,
    metadata: Mapping[str, str],
    sha256: str,
    content_type: str,
    content_encoding: str,
) -> dict[str, Any]:
    """What an object gets beside its content, as boto3 is told."""
    headers: dict[str, Any] = {
        "Metadata": encode_metadata({**metadata, SHA256: sha256}),
        "ContentType": content_type,
        "ContentEncoding": content_encoding,
        "StorageClass": options.storage_class,
        "ACL": options.acl,
        "SSEKMSKeyId": options.sse_kms_key_id,
        "Tagging": urlencode([(tag.name, tag.value) for tag in options.object_tag]),
        "ServerSideEncryption": "" if options.sse == "none" else options.sse,
    }
    return {name: value for name, value in headers.items() if value}


def same(stored: StoredObject, size_bytes: int, sha256: str, unique: str) -> bool | None:
    """Whether an object is the one; None when its metadata do not say."""
    if stored.size_bytes != size_bytes:
        return False
    if unique and stored.metadata.get(UNIQUE, unique) != unique:
        return False
    return stored.sha256 == sha256 if stored.sha256 else None
