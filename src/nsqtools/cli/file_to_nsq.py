"""file_to_nsq: replay archives, or load plain logs."""

from __future__ import annotations

from nsqtools.cli.base import Program

PROGRAM = Program(
    name="file_to_nsq",
    headline="replay archives into a topic, or load plain logs",
    summary=(
        "Replay archives into a topic, or load plain logs, a message a line. Compression and"
        " record format are recognised from the bytes."
    ),
    options="nsqtools.replay.options:FileToNsqOptions",
    run="nsqtools.replay.run:run",
    examples=(
        (
            "replay an hour of an archive at 5000 messages a second",
            (
                "file_to_nsq --topic=orders --nsqd-tcp-address=127.0.0.1:4150 --rate=5000 \\\n"
                "    --since=2026-01-31T13:00 --until=2026-01-31T14:00 /var/log/nsq/orders.*.zst"
            ),
        ),
        (
            "the same out of a bucket, of which little more than that hour is fetched",
            (
                "file_to_nsq --topic=orders --nsqd-tcp-address=127.0.0.1:4150 \\\n"
                "    --since=2026-01-31T13:00 --until=2026-01-31T14:00 s3://archive/orders/dt=2026-01-31/"
            ),
        ),
        (
            "load a plain log",
            "zcat access.log.gz | file_to_nsq --topic=access --nsqd-tcp-address=127.0.0.1:4150 -",
        ),
    ),
)
main = PROGRAM.main
