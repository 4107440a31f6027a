"""Options of clients, from words as they stand on a command line, and waiting for what they do."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from tests.support.nsqd import PATIENCE_S

from nsqtools.client.options import ConsumerOptions, ProducerOptions
from nsqtools.options import Setting, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
POLL_S = 0.005


def consumer_options(max_in_flight: int = 200, /, **settings: str) -> ConsumerOptions:
    return replace(_loaded(ConsumerOptions, settings), max_in_flight=max_in_flight)


def producer_options(**settings: str) -> ProducerOptions:
    return _loaded(ProducerOptions, settings)


def _loaded(kind: type[T], settings: dict[str, str]) -> T:
    options, problems = load_settings(
        kind, [Setting(name=name, value=value) for name, value in settings.items()]
    )
    assert not problems
    return options


async def until(condition: Callable[[], T]) -> T:
    """Wait until this is so; gives what it gave."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := condition()):  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(POLL_S)
    return found
