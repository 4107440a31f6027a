"""The options of the commands of `nsqtools spool`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools.options import BOOL, TEXT, option, repeated
from nsqtools.stores.options import StoreOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

_FOLDER = "spool of nsq_to_s3 (its --spool-dir)"


@dataclass(frozen=True, kw_only=True)
class SpoolLsOptions:
    """One listing."""

    folders: tuple[str, ...] = repeated(TEXT, help=_FOLDER, flag="folder", positional=True)
    json: bool = option(BOOL, default="false", help="one JSON object a line")

    def check(self) -> Iterator[str]:
        """The mistakes that concern several options."""
        if not self.folders:
            yield "name the folder of a spool"


@dataclass(frozen=True, kw_only=True)
class SpoolUploadOptions(StoreOptions):
    """One upload of all that nobody has in hand. Each file goes to the bucket that it was made for."""

    folders: tuple[str, ...] = repeated(TEXT, help=_FOLDER, flag="folder", positional=True)

    def check(self) -> Iterator[str]:
        """The mistakes that concern several options."""
        if not self.folders:
            yield "name the folder of a spool"
        if self.bucket:
            yield "each file goes to the bucket that it was made for: leave out --bucket"
        yield from self.check_store(needs_bucket=False)
