"""What publishers bring to a topic within one turn of the loop: each run of it becomes a block."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nsqtools.wire.bodies import joined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from nsqtools.wire.bodies import Bodies

    Answer = Callable[[str | None], None]
    # Each with why it failed, or None.
    Answers = list[tuple[Answer, str | None]]

# Publishes that came together become one block up to this size: who reads it back holds all of it.
RUN_BYTES_MAX = 256 << 10
# And this many: a message of a byte costs several hundred while its block is built.
RUN_MESSAGES_MAX = 16384


class Publish(NamedTuple):
    """Messages that are to be answered for together, deferred by `delay_ms` milliseconds, or not (0)."""

    bodies: Bodies
    delay_ms: int
    answer: Answer


class Run(NamedTuple):
    """What becomes one block."""

    bodies: Bodies
    delay_ms: int
    answers: list[Answer]


def runs_of(publishes: Iterable[Publish]) -> Iterator[Run]:
    """All of them in their order; what is deferred has a run of its own, and so has what is very long."""
    run: list[Publish] = []
    size_bytes = count = 0
    for publish in publishes:
        size_bytes += publish.bodies.size_bytes
        count += len(publish.bodies.each)
        is_much = size_bytes > RUN_BYTES_MAX or count > RUN_MESSAGES_MAX
        if run and (is_much or publish.delay_ms or run[0].delay_ms):
            yield _run(run)
            run = []
            size_bytes, count = publish.bodies.size_bytes, len(publish.bodies.each)
        run.append(publish)
    if run:
        yield _run(run)


def _run(publishes: list[Publish]) -> Run:
    first = publishes[0]
    bodies = first.bodies if len(publishes) == 1 else joined(one.bodies for one in publishes)
    return Run(bodies, first.delay_ms, [one.answer for one in publishes])
