"""What publishers bring to a topic within one turn of the loop: each run of it becomes a block."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Answer = Callable[[str | None], None]
    # Each with why it failed, or None.
    Answers = list[tuple[Answer, str | None]]

# Publishes that came together become one block up to this size: who reads it back holds all of it.
RUN_BYTES_MAX = 256 << 10
# And this many: a message of a byte costs several hundred while its block is built.
RUN_MESSAGES_MAX = 16384


class Publish(NamedTuple):
    """Messages that are to be answered for together, deferred by `delay_ms` milliseconds, or not (0)."""

    bodies: list[bytes]
    delay_ms: int
    answer: Answer


class Run(NamedTuple):
    """What becomes one block."""

    bodies: list[bytes]
    delay_ms: int
    answers: list[Answer]


def runs_of(publishes: Iterable[Publish]) -> Iterator[Run]:
    """All of them in their order; what is deferred has a run of its own, and so has what is very long."""
    run, run_bytes = Run([], 0, []), 0
    for bodies, delay_ms, answer in publishes:
        size_bytes = sum(map(len, bodies))
        is_much = run_bytes + size_bytes > RUN_BYTES_MAX
        if delay_ms or is_much or len(run.bodies) + len(bodies) > RUN_MESSAGES_MAX:
            if run.bodies:
                yield run
            run, run_bytes = Run([], 0, []), 0
        if delay_ms:
            yield Run(bodies, delay_ms, [answer])
        else:
            run.bodies.extend(bodies)
            run.answers.append(answer)
            run_bytes += size_bytes
    if run.bodies:
        yield run
