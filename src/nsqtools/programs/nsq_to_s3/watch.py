"""How the spool and the store are: for metrics, health and the line on a terminal."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from nsqtools.errors import StorageError
from nsqtools.outputs.s3.spool import SpoolState, mebibytes

if TYPE_CHECKING:
    from nsqtools.observe.counters import Registry
    from nsqtools.observe.health import Health
    from nsqtools.outputs.s3.backlog import Backlog
    from nsqtools.outputs.s3.destination import StoreDestination
    from nsqtools.outputs.s3.spool import Spool
    from nsqtools.outputs.workers import Strand

LOOK_S = 2.0
_STORE = "object store"
_SPOOL = "spool"
_SET_ASIDE = "damaged files"


class SpoolWatch:
    """Looks at the spool now and then, beside the loop; without one (--ack=upload) only at how the
    store is."""

    def __init__(
        self,
        spool: Spool | None,
        destination: StoreDestination,
        backlog: Backlog,
        strand: Strand,
    ) -> None:
        """`strand` is where the folder is looked at."""
        self._spool = spool
        self._strand = strand
        self._destination = destination
        self._backlog = backlog
        self._state = SpoolState()

    async def run(self, health: Health) -> None:
        """Until it is cancelled."""
        while True:
            if self._spool is not None:
                await self._look(self._spool, health)
            self._tell(health)
            await asyncio.sleep(LOOK_S)

    def told(self) -> list[str]:
        """What the line on a terminal says of it."""
        state = self._state
        if not state.files:
            return []
        return [f"{mebibytes(state.size_bytes)} in the spool"]

    def _tell(self, health: Health) -> None:
        if trouble := self._destination.trouble:
            health.failing(_STORE, trouble)
        else:
            health.ok(_STORE)
        waiting = self._backlog.waiting
        health.note(_SPOOL, f"{waiting} complete files wait for upload" if waiting else "")

    async def _look(self, spool: Spool, health: Health) -> None:
        try:
            self._state = await self._strand.call(spool.state)
        except StorageError as failure:
            health.failing(_SPOOL, failure)
        else:
            health.ok(_SPOOL)
        health.note(_SET_ASIDE, _said_of_set_aside(self._state))

    def register(self, registry: Registry) -> None:
        """Make the metrics; once for a registry."""
        failures = registry.counter(
            "nsqtools_store_failures_total", "requests that the store failed or refused"
        )

        def refresh() -> None:
            failures.clear()
            failures.labels().add(self._destination.failures)

        registry.before_snapshot(refresh)
        if self._spool is not None:
            self._register_spool(registry)

    def _register_spool(self, registry: Registry) -> None:
        gauges = {
            "held_files": "files in the spool, those that are being written among them",
            "held_bytes": "bytes in the spool",
            "set_aside_files": "damaged files that were set aside in the spool, for somebody to look at",
            "set_aside_bytes": "their bytes, which are not among those held",
            "backlog_files": "complete files of the spool that no output has in hand",
            "oldest_age_seconds": "how long ago the oldest file of the spool was written last",
        }
        made = {
            name: registry.gauge(f"nsqtools_spool_{name}", text).labels()
            for name, text in gauges.items()
        }

        def refresh() -> None:
            state = self._state
            oldest_s = 0.0 if state.oldest_s is None else max(0.0, time.time() - state.oldest_s)
            made["held_files"].set(state.files)
            made["held_bytes"].set(state.size_bytes)
            made["set_aside_files"].set(state.set_aside)
            made["set_aside_bytes"].set(state.set_aside_bytes)
            made["backlog_files"].set(self._backlog.waiting)
            made["oldest_age_seconds"].set(oldest_s)

        registry.before_snapshot(refresh)


def _said_of_set_aside(state: SpoolState) -> str:
    if not state.set_aside:
        return ""
    return (
        f"{state.set_aside} ({mebibytes(state.set_aside_bytes)}) are kept in the spool as .part.bad, and"
        " are not uploaded: see `nsqtools archive repair`"
    )
