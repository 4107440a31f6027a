"""nsq_to_s3: archive topics in an object store."""

from __future__ import annotations

from nsqtools.cli.base import Program

PROGRAM = Program(
    name="nsq_to_s3",
    headline="archive topics in an object store",
    summary=(
        "Archive NSQ topics in a bucket of S3, or of any store that speaks it. A message is"
        " acknowledged only after it is durable in a local spool, or in the bucket (--ack)."
    ),
    options="nsqtools.programs.nsq_to_s3.options:NsqToS3Options",
    run="nsqtools.programs.nsq_to_s3.run:run",
    examples=(
        (
            "one topic, in objects of 64 MB or an hour; credentials come from the environment",
            (
                "nsq_to_s3 --topic=orders --nsqd-tcp-address=127.0.0.1:4150 \\\n"
                "    --bucket=archive --spool-dir=/var/spool/nsq_to_s3"
            ),
        ),
        (
            "is the bucket there, and may we write to it?",
            "nsq_to_s3 --check --bucket=archive --endpoint-url=https://minio.example.com:9000",
        ),
        (
            "as JSON for DuckDB or Athena, each message in the hour in which it was published",
            (
                "nsq_to_s3 --topic-pattern='^log' --lookupd-http-address=127.0.0.1:4161 \\\n"
                "    --bucket=archive --spool-dir=/var/spool/nsq_to_s3 --format=jsonl \\\n"
                "    --partition-by=publish-time"
            ),
        ),
        (
            "without a disk to trust: acknowledged when the store has it",
            (
                "nsq_to_s3 --topic=orders --nsqd-tcp-address=127.0.0.1:4150 \\\n"
                "    --bucket=archive --ack=upload --max-in-flight=50000"
            ),
        ),
    ),
)
main = PROGRAM.main
