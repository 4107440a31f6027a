"""A function for `--transform` that makes two messages of each, in a module of its own."""

from __future__ import annotations

from tests.crash.accounting import body_of, number_of


def two_of_one(body: bytes) -> list[bytes]:
    """With the numbers that follow from that of the message."""
    number = number_of(body)
    return [body_of(2 * number), body_of(2 * number + 1)]
