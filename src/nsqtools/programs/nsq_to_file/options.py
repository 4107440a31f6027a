"""The options of nsq_to_file: what every consuming tool has, and those of an archive of files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nsqtools.options import HTTP_ADDRESS, repeated
from nsqtools.outputs.file.options import FileOptions
from nsqtools.pipeline.options import ConsumingOptions, channel_option, log_prefix_option

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True)
class NsqToFileOptions(FileOptions, ConsumingOptions):
    """One run of nsq_to_file."""

    program: ClassVar[str] = "nsq_to_file"
    channel: str = channel_option("nsq_to_file")
    log_prefix: str = log_prefix_option("[nsq_to_file] ")
    nsqd_http_address: tuple[str, ...] = repeated(
        HTTP_ADDRESS,
        help="where nsqd answers HTTP, to see who else consumes the channel; default: port 4151 beside"
        " 4150, or what nsqlookupd says",
        group="Where messages come from",
    )

    def check_output(self) -> Iterator[str]:
        """The mistakes in the options of the archive, with those of a stream."""
        yield from super().check_output()
        if self.output is not None and len(set(self.topic)) != 1:
            yield "--output=- takes one --topic"
