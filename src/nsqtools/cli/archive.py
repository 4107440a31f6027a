"""archive: list, print, check, mend and rewrite archives."""

from __future__ import annotations

from nsqtools.cli.base import Program, Suite


def _command(
    name: str, headline: str, summary: str, options: str, examples: tuple[tuple[str, str], ...]
) -> Program:
    return Program(
        name=f"archive-{name}",
        command=f"nsqtools archive {name}",
        headline=headline,
        summary=summary,
        ends_in_order=False,
        on_loop=False,
        options=f"nsqtools.programs.archive.options:{options}",
        run=f"nsqtools.programs.archive.{name}:run",
        examples=examples,
    )


SUITE = Suite(
    name="archive",
    headline="list, print, check, mend and rewrite archives",
    commands={
        "ls": _command(
            "ls",
            "records, times, sizes, state and gaps of archives",
            "List archives: how many records from when to when, how large, in which state, and where"
            " messages of a topic are missing between two files. Sealed zstd files are not read, but"
            " for their index.",
            "LsOptions",
            (
                ("what is there, and what is missing", "nsqtools archive ls /var/log/nsq"),
                (
                    "the damaged ones, for a script",
                    "nsqtools archive ls --json /var/log/nsq | jq -r 'select(.state==\"damaged\").name'",
                ),
            ),
        ),
        "cat": _command(
            "cat",
            "messages to standard output, by time and pattern",
            "Print messages to standard output, all or those of a range of time or with a pattern in"
            " their body. Of a sealed zstd file only the frames of the range are read. lines keep no"
            " time of a message: of them whole commits are printed.",
            "CatOptions",
            (
                (
                    "what was published within a minute, and mentions an order",
                    (
                        "nsqtools archive cat --since=2026-01-31T13:00 --until=2026-01-31T13:01 \\\n"
                        "    --grep='order (17|18)\\b' '/var/log/nsq/orders.*.zst'"
                    ),
                ),
                (
                    "exact archives for jq",
                    "nsqtools archive cat --format=jsonl /var/log/nsq/orders | jq .body",
                ),
            ),
        ),
        "verify": _command(
            "verify",
            "every checksum and count of archives",
            "Read archives whole and check every checksum and every count in them. What is damaged is"
            " named with its place. A file that is being written is checked as far as it is whole.",
            "VerifyOptions",
            (
                ("a folder", "nsqtools archive verify /var/log/nsq"),
                ("a day in a bucket", "nsqtools archive verify s3://archive/orders/dt=2026-01-31/"),
                (
                    "what a disk has done to last year's files, for a script",
                    "nsqtools archive verify --json '/backup/2025-*.zst' > checked.jsonl",
                ),
            ),
        ),
        "repair": _command(
            "repair",
            "what is whole of damaged archives, in new files",
            "Write what is whole of a damaged archive into a new file, and say what is lost. The old"
            " file is never changed, and no file is ever overwritten.",
            "RepairOptions",
            (
                (
                    "writes topic-000003.repaired.log.zst beside it",
                    "nsqtools archive repair /var/log/nsq/topic-000003.log.zst",
                ),
            ),
        ),
        "index": _command(
            "index",
            "zstd with an index, of gzip and of zstd without one",
            "Give zstd archives an index, by which they can be read from the middle, and make such ones"
            " of gzip files, of NSQ's own nsq_to_file, too. What a file holds is kept to the last byte."
            " lines of a gzip file get no times, because it has none.",
            "IndexOptions",
            (
                (
                    "new files beside the old ones, which stay",
                    "nsqtools archive index '/var/log/nsq/*.gz'",
                ),
                (
                    "in the place of the old ones",
                    "nsqtools archive index --replace --zstd-level=12 /var/log/nsq",
                ),
            ),
        ),
        "compact": _command(
            "compact",
            "files of many small commits, rewritten into large pieces",
            "Rewrite compressed archives of many small commits into pieces of about 1 MiB, which are"
            " smaller. What a file holds is kept to the last byte; the new file is read back and"
            " compared before it gets its name.",
            "CompactOptions",
            (
                (
                    "in the place of the old ones",
                    "nsqtools archive compact --replace /var/log/nsq",
                ),
            ),
        ),
    },
)
main = SUITE.main
