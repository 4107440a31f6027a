"""The demonstration: a log through the broker, into an archive, back into a topic, and compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nsqtools.demo.options import DemoOptions


async def run(options: DemoOptions) -> int:
    """0 when what came back is what went in, else 1."""
    from nsqtools.demo.scenario import play  # loads everything, which --help does not need

    return await play(options)
