"""spool: look into the spool of nsq_to_s3, and upload it."""

from __future__ import annotations

from nsqtools.cli.base import Program, Suite


def _command(
    name: str, headline: str, summary: str, options: str, examples: tuple[tuple[str, str], ...]
) -> Program:
    return Program(
        name=f"spool-{name}",
        command=f"nsqtools spool {name}",
        headline=headline,
        summary=summary,
        ends_in_order=False,
        on_loop=False,
        options=f"nsqtools.programs.spool.options:{options}",
        run=f"nsqtools.programs.spool.{name}:run",
        examples=examples,
    )


SUITE = Suite(
    name="spool",
    headline="look into the spool of nsq_to_s3, and upload it",
    commands={
        "ls": _command(
            "ls",
            "files that wait for upload, or are being written",
            "List the files of a spool: whose messages, how large, how old, for which bucket, and"
            " whether a running nsq_to_s3 has them in hand, or they are damaged and were set aside.",
            "SpoolLsOptions",
            (("what waits", "nsqtools spool ls /var/spool/nsq_to_s3"),),
        ),
        "upload": _command(
            "upload",
            "upload what nobody has in hand",
            "Upload the files of a spool that no running nsq_to_s3 has in hand, each to the bucket that"
            " it was made for. Nothing is consumed. Each is told with its records and bytes. What was set"
            " aside as damaged stays and is told; the exit status is 5 then.",
            "SpoolUploadOptions",
            (
                (
                    "of a host that archives no more",
                    "nsqtools spool upload --endpoint-url=https://minio:9000 /var/spool/nsq_to_s3",
                ),
            ),
        ),
    },
)
