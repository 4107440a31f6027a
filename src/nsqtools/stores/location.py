"""Where an object is: `s3://bucket/key`, and what a key and a bucket's name may be.

A key is opaque: it is sent and shown as it is, never decoded, joined or made shorter. `a/../b`, `a//b`
and `a/b` are three objects. What a store may answer to them is its own: rclone's server refuses the
first two. Whoever makes a file of a key checks that the path stays where it should.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nsqtools.options import printable

KEY_BYTES_MAX = 1024
SCHEME = "s3://"
# Cut in messages; a key can be long, and made by anybody.
_SHOWN_LENGTH_MAX = 300
# Underscores are none of AWS's, but older stores have buckets with them.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", re.ASCII)
_LIKE_AN_ADDRESS = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+", re.ASCII)


def check_bucket(name: str) -> str:
    """The name; raises ValueError with the reason when it cannot be that of a bucket."""
    if not _BUCKET.fullmatch(name):
        raise ValueError("should be 3 to 63 lower-case letters, digits, dots and hyphens")
    if ".." in name or ".-" in name or "-." in name or _LIKE_AN_ADDRESS.fullmatch(name):
        raise ValueError("should not be an IP address, nor have a dot beside a dot or a hyphen")
    return name


def check_key(key: str) -> str:
    """The key; raises ValueError with the reason when no store could have it."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise ValueError("a key should be text that UTF-8 can hold") from None
    if size > KEY_BYTES_MAX:
        raise ValueError(f"a key should have at most {KEY_BYTES_MAX} bytes, this has {size}")
    if not key:
        raise ValueError("the key is empty")
    if "\0" in key:
        raise ValueError("a key should not hold a NUL character")
    return key


@dataclass(frozen=True, slots=True)
class Location:
    """An object, or with a key that is only their beginning (which may be empty) many of them."""

    bucket: str
    key: str = ""

    def __str__(self) -> str:
        """For people: on one line, and cut. `url` has all of it."""
        shown = printable(self.key.encode("utf-8", "backslashreplace").decode())
        if len(shown) > _SHOWN_LENGTH_MAX:
            shown = shown[:_SHOWN_LENGTH_MAX] + "..."
        return f"{SCHEME}{self.bucket}/{shown}"

    @property
    def url(self) -> str:
        """What `parse_location` makes this from again."""
        return f"{SCHEME}{self.bucket}/{self.key}"


def is_location(text: str) -> bool:
    """Whether this is meant to be in a store, and not a path."""
    return text[: len(SCHEME)].lower() == SCHEME


def parse_location(text: str) -> Location:
    """`s3://bucket`, `s3://bucket/prefix/` or `s3://bucket/key`; raises ValueError with the reason.

    As with the tools of AWS nothing is decoded: `%20`, `?` and `#` are characters of the key.
    """
    if not is_location(text):
        raise ValueError("should be s3://bucket/key")
    bucket, _, key = text[len(SCHEME) :].partition("/")
    if "@" in bucket:
        raise ValueError("credentials do not belong into a location, write s3://bucket/key")
    check_bucket(bucket)
    return Location(bucket, check_key(key) if key else "")
