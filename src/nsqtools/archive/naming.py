"""File names: NSQ's `--filename-format` and what may come of it (spec: tools, parts 1.3 and 1.4).

A *file name* here is relative to the output directory, with `/` between its parts. Topics, host
names and formats are not trusted: a name that would leave the directory is refused.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from nsqtools.archive.files import BESIDE, PART_SUFFIX
from nsqtools.archive.formats import COMPRESSIONS
from nsqtools.errors import ArchiveError
from nsqtools.wire.names import is_valid_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FILENAME_FORMAT = "<TOPIC>.<HOST><REV>.<DATETIME>.log"
DATETIME_FORMAT = "%Y-%m-%d_%H"
MISSING_REV = "missing <REV> in --filename-format when gzip, rotation, or work dir enabled"
REV = "<REV>"
CHANNEL = "<CHANNEL>"
# What filesystems take for a name, and what we may add to one: a revision and `.manifest.json`.
NAME_BYTES_MAX, ROOM_BYTES = 255, 24
REVISIONS_MAX = 10_000_000
# Of a search whose steps all fell on taken names: so many in turn, then so many anywhere.
_TURNS, _GUESSES = 512, 128

# What Python documents for strftime, without %f: a name must not change within a second.
DIRECTIVE = re.compile("%([aAbBcdGHIjmMpSuUVwWxXyYzZ%])")
_EXTENSION = re.compile(r"(\.[A-Za-z0-9]+)$")
_REVISION = re.compile(r"-(\d{6,})(?=\.|$)")
_SECOND_S, _MINUTE_S = 1, 60
# Every offset from UTC in use is a multiple of this, so names by the hour change at one of these.
_QUARTER_S = 900


def host_identifier(template: str, hostname: str = "") -> str:
    """`--host-identifier`: empty means the host name up to the first dot."""
    name = hostname or os.uname().nodename
    short = name.partition(".")[0]
    if not template:
        return short
    return template.replace("<SHORT_HOST>", short).replace("<HOSTNAME>", name)


def needs_revision(*, compression: str, rotated: bool, separate_work_dir: bool) -> bool:
    """Whether NSQ asks for `<REV>` (spec: tools, part 1.3)."""
    return compression != "none" or rotated or separate_work_dir


def problem_with(filename_format: str, *, revision_needed: bool) -> str | None:
    """What is wrong with a format, in NSQ's words where it has them; None when it will do."""
    if not filename_format:
        return "--filename-format is required"
    if revision_needed and REV not in filename_format:
        return MISSING_REV
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileNaming:
    """The options that names are made from.

    `host` is what `host_identifier` returned. `utc` makes `<DATETIME>` UTC in place of local time.
    """

    host: str
    filename_format: str = FILENAME_FORMAT
    datetime_format: str = DATETIME_FORMAT
    utc: bool = False
    pid: int = field(default_factory=os.getpid)

    def format_for(
        self, topic: str, compression: str, *, revision_needed: bool, channel: str = ""
    ) -> TopicNaming:
        """The names of one topic's files; raises `ArchiveError`."""
        problem = problem_with(self.filename_format, revision_needed=revision_needed)
        if problem is not None:
            raise ArchiveError(problem)
        if not is_valid_name(topic):
            raise ArchiveError(f"invalid topic name {topic!r}")
        if CHANNEL in self.filename_format and not is_valid_name(channel):
            raise ArchiveError(f"invalid channel name {channel!r}")
        template = self.filename_format
        if not revision_needed:
            template = _with_optional_revision(template.replace(REV, ""))
        suffix = COMPRESSIONS[compression].suffix
        if suffix and not template.endswith(suffix):
            template += suffix
        parts = [self._fill(part, topic, channel) for part in template.split("/")]
        return TopicNaming(
            template="/".join(parts),
            datetime_format=self.datetime_format,
            utc=self.utc,
            revision_is_optional=not revision_needed,
        )

    def _fill(self, part: str, topic: str, channel: str) -> str:
        # Neither holds a `<`, so that nothing is filled in twice.
        filled = part.replace("<TOPIC>", topic).replace(CHANNEL, channel)
        if filled.replace(REV, "") in (".", "..") and filled != part:
            filled = filled.replace(".", "%2E")
        return filled.replace("<HOST>", self.host).replace("<PID>", str(self.pid))


def _with_optional_revision(template: str) -> str:
    """A place for the revision before the extension, should a name be taken."""
    if match := _EXTENSION.search(template):
        return template[: match.start()] + REV + match.group()
    return template + REV


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicNaming:
    """The names of one topic's files over time; made by `FileNaming.format_for`."""

    template: str
    datetime_format: str
    utc: bool
    revision_is_optional: bool
    is_late = False
    """A file's name is known when it is opened."""
    mark_folder = ""

    def stem(self, now: float) -> str:
        """The name at `now` (seconds since the epoch) with its revision still open.

        Another stem means another file. Raises `ArchiveError` for a name that leaves the
        directory.
        """
        if "<DATETIME>" not in self.template:
            stem = self.template
        else:
            stem = self.template.replace("<DATETIME>", self.period_at(now))
        name = self.name(stem, 0)
        check_name(name)
        check_length(name)
        return stem

    def name(self, stem: str, revision: int) -> str:
        hidden = self.revision_is_optional and revision == 0
        return stem.replace(REV, "" if hidden else f"-{revision:06d}")

    def working_name(self, stem: str, revision: int) -> str:
        """The name of the file while it is written."""
        return self.name(stem, revision) + PART_SUFFIX

    def next_change(self, now: float) -> float | None:
        """The next time at which the stem may be another one; None when it never changes."""
        step = self.step_s
        return None if step is None else now - now % step + step

    @property
    def step_s(self) -> int | None:
        """The stem can only change at multiples of this; None when it never changes."""
        if "<DATETIME>" not in self.template:
            return None
        return step_of(self.datetime_format)

    def period_at(self, now: float) -> str:
        """`<DATETIME>` at a time."""
        if self.utc:
            moment = datetime.fromtimestamp(now, UTC)
        else:
            moment = datetime.fromtimestamp(now, UTC).astimezone()
        return DIRECTIVE.sub(
            lambda match: "%" if match.group() == "%%" else moment.strftime(match.group()),
            self.datetime_format,
        )


@lru_cache
def step_of(time_format: str) -> int | None:
    """What such a format says can only change at multiples of so many seconds; None: it never does."""
    directives = {match.group(1) for match in DIRECTIVE.finditer(time_format)}
    if not directives - {"%"}:
        return None
    if directives & set("ScX"):
        return _SECOND_S
    return _MINUTE_S if "M" in directives else _QUARTER_S


def check_name(name: str) -> None:
    """Raise `ArchiveError` for a file name that is empty or leads out of its directory."""
    parts = name.split("/")
    if not name or not parts[-1]:
        raise ArchiveError(f"the file name {name!r} is empty")
    if name.startswith("/"):
        raise ArchiveError(
            f"the file name {name!r} is absolute", hint="Name the folder with --output-dir."
        )
    if "\0" in name or ".." in parts or parts[-1] == ".":
        raise ArchiveError(f"the file name {name!r} leads out of the output directory")


def check_length(name: str) -> None:
    """Raise `ArchiveError` for a name that leaves no room for what is put behind it, or that would be
    taken for one of ours."""
    *folders, last = (len(os.fsencode(part)) for part in name.split("/"))
    if last > NAME_BYTES_MAX - ROOM_BYTES or max(folders, default=0) > NAME_BYTES_MAX:
        limit = f"a name of {NAME_BYTES_MAX - ROOM_BYTES} bytes in folders of {NAME_BYTES_MAX}"
        raise ArchiveError(f"the file name {name!r} is too long: {limit} is the limit")
    if name.endswith(BESIDE):
        raise ArchiveError(f"the file name {name!r} is that of a manifest or a watermark")


def path_of(directory: Path, name: str) -> Path:
    """The path of a file name in `directory`.

    Raises `ArchiveError` when the name, or a symbolic link among its parents, leads outside.
    """
    check_name(name)
    path = directory / name
    if not Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(directory)):
        raise ArchiveError(f"{path.parent} is a link that leads out of {directory}")
    return path


def first_free(start: int, is_taken: Callable[[int], bool]) -> int:
    """A free revision from `start` on, found with few questions (some 700 at worst).

    Steps double until one is free, then halve towards the last that was taken. Revisions that
    were removed leave holes; a hole may be chosen, a taken one never. Names that somebody put
    where the steps fall only cost questions: then the next ones are tried in turn, then any.
    """
    taken, free = _gallop(start, is_taken)
    if free is None:
        return _first_not(is_taken, range(start + 1, start + _TURNS)) or _any_free(is_taken)
    while free - taken > 1:
        middle = (taken + free) // 2
        if is_taken(middle):
            taken = middle
        else:
            free = middle
    return free


def _gallop(start: int, is_taken: Callable[[int], bool]) -> tuple[int, int | None]:
    """A revision that is taken, and one behind it that is free; None when there was none."""
    if not is_taken(start):
        return start - 1, start
    taken, step = start, 1
    while taken + step <= REVISIONS_MAX:
        if not is_taken(taken + step):
            return taken, taken + step
        taken += step
        step *= 2
    return taken, None


def _any_free(is_taken: Callable[[int], bool]) -> int:
    anywhere = [secrets.randbelow(REVISIONS_MAX) for _ in range(_GUESSES)]
    found = _first_not(is_taken, anywhere)
    if found is None:
        raise ArchiveError(f"no free one among {REVISIONS_MAX} names of one file")
    return found


def _first_not(is_taken: Callable[[int], bool], revisions: Iterable[int]) -> int | None:
    return next((revision for revision in revisions if not is_taken(revision)), None)


def bump(name: str, count: int) -> str:
    """The name with its revision raised by `count`, or given one: its format is not known."""
    if count == 0:
        return name
    head, slash, last = name.rpartition("/")
    found = list(_REVISION.finditer(last))
    if found:
        match = found[-1]
        revision = int(match.group(1)) + count
        return f"{head}{slash}{last[: match.start()]}-{revision:06d}{last[match.end() :]}"
    stem, dot, extension = last.partition(".log")
    if not dot:
        match_extension = _EXTENSION.search(last)
        at = match_extension.start() if match_extension else len(last)
        stem, dot, extension = last[:at], last[at:], ""
    return f"{head}{slash}{stem}-{count:06d}{dot}{extension}"
