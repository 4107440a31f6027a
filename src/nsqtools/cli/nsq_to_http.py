"""nsq_to_http: deliver topics to HTTP endpoints."""

from __future__ import annotations

from nsqtools.cli.base import Program

PROGRAM = Program(
    name="nsq_to_http",
    headline="deliver topics to HTTP endpoints",
    summary=(
        "Deliver NSQ topics to HTTP endpoints. A message is acknowledged only after an endpoint"
        " answered with a status that says it has it."
    ),
    options="nsqtools.programs.nsq_to_http.options:NsqToHttpOptions",
    run="nsqtools.programs.nsq_to_http.run:run",
    examples=(
        (
            "each message of a topic as a POST",
            (
                "nsq_to_http --topic=orders --nsqd-tcp-address=127.0.0.1:4150 \\\n"
                "    --post=https://hooks.example.com/orders"
            ),
        ),
        (
            "what is refused into a folder, from which file_to_nsq --where publishes it again",
            (
                "nsq_to_http --topic=orders --nsqd-tcp-address=127.0.0.1:4150 \\\n"
                "    --post=http://127.0.0.1:8080/{topic} --dead-letter-dir=/var/lib/dead"
            ),
        ),
        (
            "a webhook that wants JSON of its own",
            (
                "nsq_to_http --topic=orders --nsqd-tcp-address=127.0.0.1:4150 \\\n"
                "    --post=https://hooks.example.com/T0/B0 \\\n"
                """    --body-template='{"text": "{topic}: {body}"}'"""
            ),
        ),
        (
            "what a function in ./mymodule.py makes of each message",
            (
                "nsq_to_http --topic=orders --nsqd-tcp-address=127.0.0.1:4150 \\\n"
                "    --post=http://127.0.0.1:8080/{topic} --transform=mymodule:clean --transform-path=."
            ),
        ),
        (
            "several topics to two endpoints, the quicker one more often",
            (
                "nsq_to_http --topic-pattern='^log' --lookupd-http-address=127.0.0.1:4161 \\\n"
                "    --post=http://10.0.0.1:8080/{topic} --post=http://10.0.0.2:8080/{topic} \\\n"
                "    --mode=epsilon-greedy"
            ),
        ),
    ),
)
main = PROGRAM.main
