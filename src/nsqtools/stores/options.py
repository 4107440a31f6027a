"""The options of an object store. None of them is a secret: credentials come as every tool of AWS
takes them, from the environment, a profile, an instance role or a web identity.
"""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nsqtools.options import (
    BOOL,
    PATH,
    TEXT,
    Choice,
    Duration,
    Int,
    Kind,
    Setting,
    Size,
    option,
    printable,
    repeated,
)
from nsqtools.stores.location import check_bucket, is_location, parse_location

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Addressing = Literal["auto", "path", "virtual"]
ADDRESSING: Kind[Addressing] = Choice(("auto", "path", "virtual"))
Encryption = Literal["none", "AES256", "aws:kms"]
ENCRYPTION: Kind[Encryption] = Choice(("none", "AES256", "aws:kms"))
ACL: Kind[str] = Choice(
    (
        "private",
        "public-read",
        "public-read-write",
        "authenticated-read",
        "aws-exec-read",
        "bucket-owner-read",
        "bucket-owner-full-control",
    ),
    metavar="ACL",
)
PART_BYTES_MIN = 5 << 20
PART_BYTES_MAX = 5 << 30
# What one PUT may bring, whatever the threshold says.
PUT_BYTES_MAX = 5 << 30
CONCURRENCY_MAX = 64
TAGS_MAX = 10
_TAG_NAME_LENGTH_MAX = 128
_TAG_VALUE_LENGTH_MAX = 256
_TAG = re.compile(r"[\w +\-=.:/@]*")
_URL = re.compile(
    r"https?://([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[\w./~%-]*)?", re.ASCII
)
_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_STORE = "The object store"
_OBJECTS = "What an object gets"
_UPLOADS = "How objects are uploaded"


class Bucket(Kind[str]):
    """The name of a bucket."""

    metavar = "BUCKET"

    def parse(self, text: str) -> str:
        return check_bucket(text)


class EndpointUrl(Kind[str]):
    """Where a store is: an http or https URL, without a user, whose password would be seen."""

    metavar = "URL"

    def parse(self, text: str) -> str:
        if "@" in text:
            raise ValueError("should not hold a user: credentials come from the environment")
        if not _URL.fullmatch(text):
            raise ValueError("should be an http or https URL, such as https://s3.example.com")
        return text


class Word(Kind[str]):
    """A name of letters, digits, `-` and `_`."""

    def __init__(self, metavar: str) -> None:
        self.metavar = metavar

    def parse(self, text: str) -> str:
        if not _WORD.fullmatch(text):
            raise ValueError("should be letters, digits, - and _")
        return text


class ObjectTag(Kind[Setting]):
    """`NAME=VALUE`, as S3 allows them."""

    metavar = "NAME=VALUE"
    separator = ";"

    def parse(self, text: str) -> Setting:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ValueError("should be NAME=VALUE")
        if len(name) > _TAG_NAME_LENGTH_MAX or len(value) > _TAG_VALUE_LENGTH_MAX:
            raise ValueError(
                f"a name has at most {_TAG_NAME_LENGTH_MAX} characters,"
                f" a value {_TAG_VALUE_LENGTH_MAX}"
            )
        if name.lower().startswith("aws:"):
            raise ValueError("names that begin with aws: are the store's own")
        if not _TAG.fullmatch(name) or not _TAG.fullmatch(value):
            raise ValueError("should be letters, digits, spaces and + - = . _ : / @")
        return Setting(name=name, value=value)

    def render(self, value: Setting) -> str:
        return f"{value.name}={value.value}"


@dataclass(frozen=True, kw_only=True)
class StoreAccess:
    """How to reach a store, whatever the bucket. Times are in seconds."""

    endpoint_url: str | None = option(
        EndpointUrl(), help="a store that is not AWS, such as https://minio:9000", group=_STORE
    )
    region: str | None = option(
        Word("REGION"),
        help="region of the bucket; default: as the environment or the profile says",
        group=_STORE,
    )
    addressing: Addressing = option(
        ADDRESSING,
        default="auto",
        help="where a request names the bucket: path (host/bucket), virtual (bucket.host);"
        " auto: path with an --endpoint-url, virtual with AWS",
        group=_STORE,
    )
    ca_file: Path | None = option(
        PATH, help="certificates (PEM) that the store's has to be signed by", group=_STORE
    )
    profile: str | None = option(
        TEXT,
        help="profile of AWS's configuration files whose credentials are used; no flag takes a key",
        group=_STORE,
    )
    requester_pays: bool = option(
        BOOL,
        default="false",
        help="agree to pay for requests to somebody else's bucket",
        group=_STORE,
    )
    store_timeout_s: float = option(
        Duration(minimum="1ms"),
        default="1m",
        help="longest time that the store may keep a request waiting",
        group=_STORE,
    )

    def check_access(self) -> Iterator[str]:
        """The mistakes that concern several of these options."""
        if self.ca_file is not None and not self._is_tls:
            yield "--ca-file has no meaning for an --endpoint-url without https"
        if self.profile is not None:
            yield from self._check_profile(self.profile)

    def _check_profile(self, profile: str) -> Iterator[str]:
        from nsqtools.stores.connection import (
            profiles,
        )  # and boto3 with it, where one is named only

        try:
            known = profiles()
        except ValueError as error:
            yield f"--profile: {error}"
            return
        if profile not in known:
            there_are = (
                f"there are {', '.join(map(printable, known))}" if known else "there is none"
            )
            yield f"--profile: AWS's configuration files have no {printable(profile)!r}; {there_are}"

    def check_locations(self, names: Iterable[str]) -> Iterator[str]:
        """These mistakes, and what is wrong with the locations among the names of a command line."""
        yield from self.check_access()
        for name in filter(is_location, names):
            try:
                location = parse_location(name)
            except ValueError as wrong:
                yield f"{printable(name)}: {wrong}"
            else:
                yield from self.check_reach(location.bucket, str(location))

    def check_reach(self, bucket: str, said: str) -> Iterator[str]:
        """Why a bucket, which was named as `said`, cannot be reached so."""
        if self.endpoint_url is None and "_" in bucket:
            yield f"{said}: AWS has no bucket with an underscore, name an --endpoint-url"
        if self.addressing == "virtual" and "." in bucket and self._is_tls:
            yield f"--addressing virtual: no certificate fits the dots of {said}"

    @property
    def _is_tls(self) -> bool:
        return self.endpoint_url is None or self.endpoint_url.startswith("https:")


@dataclass(frozen=True, kw_only=True)
class _Bucket:
    """Where objects go, in front of all else in the help."""

    bucket: str | None = option(Bucket(), help="bucket that objects go to", group=_STORE)


@dataclass(frozen=True, kw_only=True)
class StoreOptions(StoreAccess, _Bucket):
    """Which store, and how objects get there. Sizes are in bytes."""

    sse: Encryption = option(
        ENCRYPTION, default="none", help="encryption that the store is asked for", group=_OBJECTS
    )
    sse_kms_key_id: str | None = option(
        TEXT, help="key of --sse aws:kms; default: the account's own", group=_OBJECTS
    )
    storage_class: str | None = option(
        Word("CLASS"), help="storage class, such as STANDARD_IA", group=_OBJECTS
    )
    object_tag: tuple[Setting, ...] = repeated(ObjectTag(), help="tag of objects", group=_OBJECTS)
    acl: str | None = option(
        ACL, help="canned ACL of objects, such as bucket-owner-full-control", group=_OBJECTS
    )

    part_size_bytes: int = option(
        Size(minimum=PART_BYTES_MIN, maximum=PART_BYTES_MAX),
        default="8MiB",
        help="size of the parts of a large object; larger where it would have more than 10000",
        group=_UPLOADS,
    )
    multipart_threshold_bytes: int = option(
        Size(minimum=PART_BYTES_MIN, maximum=PUT_BYTES_MAX),
        default="16MiB",
        help="objects of this size and more are uploaded in parts",
        group=_UPLOADS,
    )
    upload_concurrency: int = option(
        Int(minimum=1, maximum=CONCURRENCY_MAX),
        default="4",
        help="parts of an object that are uploaded at once",
        group=_UPLOADS,
    )
    max_upload_rate_bytes: int = option(
        Size(),
        default="0",
        help="bytes a second that go out, 0: as fast as it goes",
        group=_UPLOADS,
    )

    def check_store(self, *, needs_bucket: bool = True) -> Iterator[str]:
        """The mistakes that concern several of these options; what was made for a bucket of its own
        needs no `--bucket`."""
        if needs_bucket and not self.bucket:
            yield "--bucket is required"
        if self.sse_kms_key_id is not None and self.sse != "aws:kms":
            yield "--sse-kms-key-id needs --sse aws:kms"
        if self.bucket:
            yield from self.check_reach(self.bucket, f"--bucket {self.bucket}")
        yield from self.check_access()
        names = [tag.name for tag in self.object_tag]
        if len(names) > TAGS_MAX:
            yield f"--object-tag can be given at most {TAGS_MAX} times"
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield f"--object-tag names {', '.join(twice)} more than once"
