"""The options of nsq_to_file: what every consuming tool has, and those of an archive of files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nsqtools.outputs.file.options import FileOptions
from nsqtools.pipeline.options import ConsumingOptions, channel_option, log_prefix_option


@dataclass(frozen=True, kw_only=True)
class NsqToFileOptions(FileOptions, ConsumingOptions):
    """One run of nsq_to_file."""

    program: ClassVar[str] = "nsq_to_file"
    channel: str = channel_option("nsq_to_file")
    log_prefix: str = log_prefix_option("[nsq_to_file] ")
