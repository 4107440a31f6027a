"""nsq_to_file: archive topics."""

from __future__ import annotations

from nsqtools.cli.base import Program

PROGRAM = Program(
    name="nsq_to_file",
    headline="archive topics to rotating files",
    summary=(
        "Archive NSQ topics to rotating files. A message is acknowledged only after it is durable"
        " on disk."
    ),
    options="nsqtools.programs.nsq_to_file.options:NsqToFileOptions",
    run="nsqtools.programs.nsq_to_file.run:run",
    examples=(
        (
            "archive one topic, hourly, as zstd-compressed text",
            (
                "nsq_to_file --topic=orders --nsqd-tcp-address=127.0.0.1:4150 \\\n"
                "    --output-dir=/var/log/nsq --compress=zstd"
            ),
        ),
        (
            "every topic that nsqlookupd knows and that starts with log, for exact replay",
            (
                "nsq_to_file --topic-pattern='^log' --lookupd-http-address=127.0.0.1:4161 \\\n"
                "    --output-dir=/var/log/nsq --format=framed --rotate-size=1GiB"
            ),
        ),
        (
            "errors alone, and two fields of each",
            (
                "nsq_to_file --topic=log --nsqd-tcp-address=127.0.0.1:4150 \\\n"
                "    --require-json-field=level --require-json-value=error \\\n"
                "    --whitelist-json-field=ts --whitelist-json-field=msg"
            ),
        ),
    ),
)
main = PROGRAM.main
