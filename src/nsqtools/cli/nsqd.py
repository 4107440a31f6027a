"""nsqd: the embedded broker."""

from __future__ import annotations

from nsqtools.cli.base import Program

PROGRAM = Program(
    name="nsqd",
    command="nsqtools nsqd",
    headline="the embedded broker",
    summary=(
        "The embedded broker: speaks nsqd's TCP protocol and HTTP API, and keeps what it said OK"
        " to when it is killed. Past one machine, run the real nsqd."
    ),
    options="nsqtools.broker.options:NsqdOptions",
    run="nsqtools.broker.daemon:run",
    examples=(
        (
            "a broker for this machine only, safe from power cuts",
            (
                "nsqtools nsqd --data-path=/var/lib/nsqd --durable \\\n"
                "    --tcp-address=127.0.0.1:4150 --http-address=127.0.0.1:4151"
            ),
        ),
    ),
)
main = PROGRAM.main
