"""seek: move a channel back or forward."""

from __future__ import annotations

from nsqtools.cli.base import Program

PROGRAM = Program(
    name="seek",
    command="nsqtools seek",
    headline="move a channel of our nsqd back or forward in time",
    summary=(
        "Move a channel to another place in its topic's log: back to have messages again, forward to"
        " leave some out. How far back there is anything says --retain of nsqtools nsqd. What waits in"
        " the channel or is held by its consumers is forgotten."
    ),
    ends_in_order=False,
    options="nsqtools.programs.seek.options:SeekOptions",
    run="nsqtools.programs.seek.run:run",
    examples=(
        (
            "everything since noon again",
            "nsqtools seek --topic=orders --channel=billing --to=2026-01-31T12:00:00Z",
        ),
        ("all that is retained", "nsqtools seek --topic=orders --channel=billing --to=oldest"),
        ("leave out what waits", "nsqtools seek --topic=orders --channel=billing --to=newest"),
    ),
)
main = PROGRAM.main
