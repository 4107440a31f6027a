"""Keys of objects: `--key-format` and what becomes of it.

A key tells what is in the object (`<FIRST>`, `<LAST>`), so it is known when the file is complete, and
not when it is opened: until then the file has a working name of its own, and its claim holds the key with
these places open. The same file always gets the same key, whoever finishes it.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from nsqtools.archive.files import BESIDE, PART_SUFFIX
from nsqtools.archive.formats import COMPRESSIONS
from nsqtools.archive.naming import DIRECTIVE, check_name, step_of
from nsqtools.errors import ArchiveError
from nsqtools.wire.names import is_valid_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.archive.destination import FileFacts

KEY_FORMAT = "<TOPIC>/dt=%Y-%m-%d/hour=%H/<TOPIC>.<HOST>.<FIRST>-<LAST>.<REV>.<EXT>"
# What stores take; a manifest's name is that of its object and a little more.
KEY_BYTES_MAX, ROOM_BYTES = 1024, 24
FIRST, LAST, REV = "<FIRST>", "<LAST>", "<REV>"
EXTENSIONS = {"lines": "log", "jsonl": "jsonl", "framed": "nsq"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TOKEN = re.compile("<[A-Z]+>")
_KNOWN = {"<TOPIC>", "<CHANNEL>", "<HOST>", "<PID>", "<EXT>", FIRST, LAST, REV}


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectNaming:
    """What keys are made from; times are UTC. `host` is what `host_identifier` returned."""

    host: str
    record_format: str
    key_format: str = KEY_FORMAT
    pid: int = field(default_factory=os.getpid)

    def format_for(
        self, topic: str, compression: str, *, revision_needed: bool, channel: str = ""
    ) -> TopicObjectNaming:
        """The keys of one topic's objects; raises `ArchiveError`."""
        if unknown := set(_TOKEN.findall(self.key_format)) - _KNOWN:
            raise ArchiveError(f"--key-format: {', '.join(sorted(unknown))} is not known")
        if revision_needed and REV not in self.key_format:
            raise ArchiveError(f"missing {REV} in --key-format: no object is ever replaced")
        if not is_valid_name(topic):
            raise ArchiveError(f"invalid topic name {topic!r}")
        if "<" in self.host or not self.host.isprintable():
            raise ArchiveError(f"--host-identifier: {self.host!r} is no part of a key")
        values = {
            "<TOPIC>": topic,
            "<CHANNEL>": channel,
            "<HOST>": self.host,
            "<PID>": str(self.pid),
            "<EXT>": EXTENSIONS[self.record_format] + COMPRESSIONS[compression].suffix,
        }
        return TopicObjectNaming(topic=topic, key_format=self.key_format, values=values)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicObjectNaming:
    """The keys of one topic's objects over time; made by `ObjectNaming.format_for`."""

    topic: str
    key_format: str
    values: dict[str, str]
    revision_is_optional = False
    is_late = True
    """A file's name is known when it is complete."""

    def stem(self, now: float) -> str:
        """The key of a file that is opened at `now` (seconds since the epoch), with what it holds still
        open. Another stem means another file. Raises `ArchiveError` for what is no key."""
        moment = datetime.fromtimestamp(now, UTC)
        key = DIRECTIVE.sub(
            lambda match: "%" if match.group() == "%%" else moment.strftime(match.group()),
            self.key_format,
        )
        key = self._with_values(key)
        _check_key(_filled(key, "00000000T000000000Z", "00000000T000000000Z", 0))
        return key

    def name(self, stem: str, revision: int) -> str:
        """What the claim says; `name_when_complete` fills it in."""
        return stem

    def working_name(self, stem: str, revision: int) -> str:
        """Another one each time: nobody is asked for a free one."""
        return f"{self.topic}.{secrets.token_hex(8)}{PART_SUFFIX}"

    @property
    def step_s(self) -> int | None:
        """The stem can only change at multiples of this; None when it never changes."""
        return step_of(self.key_format)

    def next_change(self, now: float) -> float | None:
        """The next time at which the stem may be another one; None when it never changes."""
        step = self.step_s
        return None if step is None else now - now % step + step

    @property
    def mark_folder(self) -> str:
        """Where a watermark is: what the keys of the topic begin with, up to the last slash before
        something that changes."""
        fixed = re.split(f"%|{FIRST}|{LAST}|{REV}", self.key_format, maxsplit=1)[0]
        head, slash, _ = fixed.rpartition("/")
        return self._with_values(head + slash)

    def _with_values(self, text: str) -> str:
        return "/".join(map(self._filled_in, text.split("/")))

    def _filled_in(self, part: str) -> str:
        """A topic `..` is a name as any other, and no way up."""
        filled = _TOKEN.sub(lambda match: self.values.get(match.group(), match.group()), part)
        is_dots = filled in (".", "..") and filled != part
        return filled.replace(".", "%2E") if is_dots else filled

    def period_at(self, now: float) -> str:
        """What a watermark calls a time."""
        return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def fixed_prefix(key_format: str) -> str:
    """What all keys begin with, up to the last slash before something that changes."""
    fixed = re.split("[<%]", key_format, maxsplit=1)[0]
    head, slash, _ = fixed.rpartition("/")
    return head + slash


def is_open(name: str) -> bool:
    """Whether something of this name is known only when its file is complete."""
    return REV in name or FIRST in name or LAST in name


def name_when_complete(name: str, facts: FileFacts, created_at_s: float) -> Callable[[int], str]:
    """The key of a complete file, for each revision. A file that keeps no times has that of its creation
    for both."""
    created_ns = int(created_at_s * 1e9)
    first = _shown(created_ns if facts.first_ts_ns is None else facts.first_ts_ns)
    last = _shown(created_ns if facts.last_ts_ns is None else facts.last_ts_ns)
    return lambda revision: _filled(name, first, last, revision)


def _filled(name: str, first: str, last: str, revision: int) -> str:
    return name.replace(FIRST, first).replace(LAST, last).replace(REV, f"{revision:06d}")


def _shown(time_ns: int) -> str:
    """To the millisecond, in a form that sorts."""
    moment = _EPOCH + timedelta(microseconds=time_ns // 1000)
    return moment.strftime("%Y%m%dT%H%M%S") + f"{moment.microsecond // 1000:03d}Z"


def _check_key(key: str) -> None:
    check_name(key)
    if len(key.encode("utf-8", "surrogateescape")) > KEY_BYTES_MAX - ROOM_BYTES:
        raise ArchiveError(f"the key {key!r} is longer than {KEY_BYTES_MAX - ROOM_BYTES} bytes")
    if not key.isprintable():
        raise ArchiveError(f"the key {key!r} holds what cannot be printed")
    if key.endswith(BESIDE):
        raise ArchiveError(f"the key {key!r} is that of a manifest or a watermark")
