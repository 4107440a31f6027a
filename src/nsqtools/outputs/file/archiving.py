"""From the options that every archive has to what its parts want."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools.archive.partition import ByPublishTime
from nsqtools.archive.rotation import RotationPolicy
from nsqtools.options.fields import variable_of
from nsqtools.outputs.archive_options import LATENESS_S, OPEN_FILES_MAX
from nsqtools.outputs.file.hook import PublishHook

if TYPE_CHECKING:
    from nsqtools.outputs.archive_options import ArchiveOptions


def rotation_of(options: ArchiveOptions) -> RotationPolicy:
    """When a file ends."""
    return RotationPolicy(
        rotate_interval_s=options.rotate_interval_s,
        rotate_size_bytes=options.rotate_size_bytes,
        rotate_records=options.rotate_records,
        rotate_idle_s=options.rotate_idle_s,
    )


def partition_of(options: ArchiveOptions) -> ByPublishTime | None:
    """Whether messages are filed under their own time."""
    if options.partition_by == "arrival":
        return None
    return ByPublishTime(
        lateness_s=LATENESS_S if options.lateness_s is None else options.lateness_s,
        open_files_max=options.max_open_files or OPEN_FILES_MAX,
    )


def hook_of(options: ArchiveOptions, program: str) -> PublishHook | None:
    """What runs for each published file, if anything."""
    if not options.on_publish:
        return None
    return PublishHook(
        options.on_publish,
        timeout_s=options.on_publish_timeout_s,
        secret_prefix=variable_of(program, ""),
    )
