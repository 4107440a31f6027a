"""Bad messages, or an outage: when most of what is sent fails, it is not the messages that are bad.

While the breaker is open no message is given up, to a dead letter or to nsqd. A few are sent at a time,
the probe: what fails of it is held, what goes well shows that the endpoint works. After a probe in which
nothing went well the next one waits, so that an endpoint in trouble is asked little, and good messages
behind many bad ones are found all the same.
"""

from __future__ import annotations

from collections import deque

from nsqtools.observe.log import get_log
from nsqtools.outputs.contract import Again

# Of so many messages it is known whether they were done; with fewer than the second nothing is said.
BREAKER_WINDOW = 100
BREAKER_MIN = 20
# How long the next probe waits after one in which nothing went well, and how many messages it has: an
# account may be locked by too many wrong credentials.
PROBE_S = 0.25
PROBE_MESSAGES = 4
# How long a message that failed in an outage is held: longer each time, so that others have their turn.
HELD_S = 10.0
HELD_MAX_S = 60.0
OUTAGE = "most messages fail: an outage"


def held(tries: int, why: str = OUTAGE) -> Again:
    """The answer for a message that failed in an outage, and was tried so often."""
    return Again(min(HELD_S * max(1, tries), HELD_MAX_S), why)


class Breaker:
    """Open while more than `ratio` of the last messages failed. Times are seconds of the caller's
    clock. `last_error` is what a message failed by."""

    def __init__(self, ratio: float, topic: str) -> None:
        self.last_error = ""
        self._ratio = ratio
        self._topic = topic
        self._failed: deque[bool] = deque(maxlen=BREAKER_WINDOW)
        self._count = 0
        self._was_open = self._is_probing = self._went_well = False
        self._next_s = 0.0
        self._log = get_log("http")

    @property
    def is_open(self) -> bool:
        """Whether nothing may go to the dead letter now."""
        seen = len(self._failed)
        return seen >= BREAKER_MIN and self._count > self._ratio * seen

    @property
    def why(self) -> str:
        """What an open breaker is told by."""
        return f"{OUTAGE}: {self.last_error}" if self.last_error else OUTAGE

    def wait_s(self, now_s: float) -> float:
        """How long to wait before a delivery may be sent; 0: it may be, and is the probe while the
        breaker is open."""
        if not self.is_open:
            return 0.0
        return PROBE_S if self._is_probing else max(0.0, self._next_s - now_s)

    def probe_began(self) -> None:
        """A delivery is sent while the breaker is open."""
        self._is_probing = True
        self._went_well = False

    def probe_ended(self, now_s: float) -> None:
        """It was answered, or given up."""
        self._is_probing = False
        self._next_s = now_s if self._went_well else now_s + PROBE_S

    def note_done(self, messages: int) -> None:
        """So many messages were done."""
        if not messages:
            return
        self._went_well = True
        if not self._count and len(self._failed) == BREAKER_WINDOW:
            return  # all is well, as it was
        for _ in range(min(messages, BREAKER_WINDOW)):
            self._push(failed=False)

    def note_failed(self) -> None:
        """A message will never be taken."""
        self._push(failed=True)

    def _push(self, *, failed: bool) -> None:
        if len(self._failed) == BREAKER_WINDOW:
            self._count -= self._failed[0]
        self._failed.append(failed)
        self._count += failed
        if self.is_open != self._was_open:
            self._was_open = self.is_open
            self._tell()

    def _tell(self) -> None:
        if self._was_open:
            self._log.error(
                "most messages fail, this is taken for an outage: none is given up",
                topic=self._topic,
                failed=self._count,
                of=len(self._failed),
                error=self.last_error,
            )
        else:
            self._log.info("messages are taken again, the outage is over", topic=self._topic)
