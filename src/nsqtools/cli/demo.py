"""demo: the whole way of a log through broker, archive and replay."""

from __future__ import annotations

from nsqtools.cli.base import Program

PROGRAM = Program(
    name="demo",
    command="nsqtools demo",
    headline="broker, archive and replay on this machine, compared",
    summary=(
        "Publish a log to an embedded broker, archive it with nsq_to_file, replay the archive, and"
        " compare the two. Everything stays on this machine."
    ),
    ends_in_order=False,
    options="nsqtools.demo.options:DemoOptions",
    run="nsqtools.demo:run",
    examples=(
        ("with a log of this machine", "nsqtools demo"),
        ("with a log of your own", "nsqtools demo --input=/var/log/syslog"),
    ),
)
main = PROGRAM.main
