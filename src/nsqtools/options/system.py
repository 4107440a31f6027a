"""Kinds of option values about the machine: a command to run, room on a disk."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from nsqtools.options.kinds import SIZE, Kind, OutOfRange

ARGUMENTS_MAX = 256
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Kind[tuple[str, ...]]):
    """A program and its first arguments, in one text with a shell's quotes. No shell runs it."""

    metavar: str = "CMD"
    hidden: bool = True
    """It may hold what is secret, such as a URL with a token."""

    def parse(self, text: str) -> tuple[str, ...]:
        if "\0" in text:
            raise ValueError("holds a NUL character")
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise ValueError(f"should be a command: {str(error).lower()}") from error
        if not words or not words[0]:
            raise ValueError("should be a command")
        if len(words) > ARGUMENTS_MAX:
            raise OutOfRange(f"should have at most {ARGUMENTS_MAX} words")
        return tuple(words)

    def render(self, value: tuple[str, ...]) -> str:
        return "***" if value else ""


@dataclass(frozen=True, slots=True)
class Space:
    """Room on a disk: so many bytes, or such a part of it (1 is all of it)."""

    size_bytes: int = 0
    part: float = 0.0

    def __str__(self) -> str:
        return f"{self.part * 100:g}%" if self.part else SIZE.render(self.size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeOrPercent(Kind[Space]):
    """A size, or a part of the whole."""

    metavar: str = "SIZE|%"
    explain: str = "a size such as 10GiB, or a part of the disk such as 5%"
    native: tuple[type, ...] = (int,)

    def parse(self, text: str) -> Space:
        if not text.endswith("%"):
            return Space(size_bytes=SIZE.parse(text))
        match = _PERCENT.fullmatch(text)
        if match is None:
            raise ValueError("should be a size such as 10GiB, or a part of the disk such as 5%")
        if (percent := float(match[1])) >= 100:
            raise OutOfRange("should be less than 100%")
        return Space(part=percent / 100)


COMMAND = Command()
SIZE_OR_PERCENT = SizeOrPercent()
