"""The options of nsq_to_s3: what every consuming tool has, and those of an archive in a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nsqtools.options import BOOL, HTTP_ADDRESS, option, repeated
from nsqtools.outputs.s3.options import S3Options
from nsqtools.pipeline.options import ConsumingOptions, channel_option, log_prefix_option

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True)
class NsqToS3Options(S3Options, ConsumingOptions):
    """One run of nsq_to_s3."""

    program: ClassVar[str] = "nsq_to_s3"
    channel: str = channel_option("nsq_to_s3")
    log_prefix: str = log_prefix_option("[nsq_to_s3] ")
    nsqd_http_address: tuple[str, ...] = repeated(
        HTTP_ADDRESS,
        help="where nsqd answers HTTP, to see who else consumes the channel; default: port 4151 beside"
        " 4150, or what nsqlookupd says",
        group="Where messages come from",
    )
    only_check: bool = option(
        BOOL,
        default="false",
        help="write, read and remove one small object, say what is missing, and exit; no --topic is"
        " needed",
        group="The object store",
        flag="check",
    )

    def check(self) -> Iterator[str]:
        """For a look at the store nothing is consumed."""
        yield from self.check_store() if self.only_check else super().check()
