"""What would be sent: an output that shows the request of the first message, and sends nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nsqtools.outputs.contract import Again, Feeding
from nsqtools.outputs.http.request import values_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nsqtools.outputs.http.batches import Encoding
    from nsqtools.outputs.http.bodies import Bodies
    from nsqtools.outputs.http.request import RequestMaker
    from nsqtools.wire.messages import Messages

# Headers whose values are not for a screen.
_SECRET = re.compile(
    rb"(?im)^([\w-]*(?:authorization|cookie|token|key|secret|password)[\w-]*): .*$"
)
# The run has been asked to end long before.
_LATER_S = 60.0


class DryRun:
    """An `Output`. `show` gets the request; the message stays with nsqd."""

    feeding = Feeding(wait_s=0.0, messages_max=1, gives_back=True)

    def __init__(
        self,
        maker: RequestMaker,
        show: Callable[[str], None],
        secrets: Sequence[str],
        bodies: Bodies,
        *,
        encoding: Encoding = "none",
        steps: Callable[[Messages], Messages | str] = lambda messages: messages,
    ) -> None:
        """`secrets` are not shown, whatever their headers are called. A body that is compressed when it
        is sent is shown as it was before. `steps` gives what filters leave of a message, or why nothing.
        """
        self._steps = steps
        self._bodies = bodies
        self._encoding = encoding
        self._secrets = [secret.encode("utf-8", "surrogateescape") for secret in secrets]
        self._maker = maker
        self._show = show
        self._shown = 0

    def counts(self) -> Mapping[str, int]:
        return {"shown": self._shown}

    def trouble(self) -> str:
        """Nothing is asked, so nothing fails."""
        return ""

    async def open(self) -> None:
        """Nothing is opened."""

    async def deliver(self, messages: Sequence[Messages]) -> Again:
        """Show the first one."""
        if not self._shown:
            self._shown = 1
            self._show(self._shown_of(messages[0]))
        return Again(_LATER_S, "a dry run", stands=True)

    def _shown_of(self, message: Messages) -> str:
        first = self._steps(message)
        if isinstance(first, str):
            return f"nothing would be sent: {first}"
        rows = [(first, 0)]
        places, texts, unfit = self._bodies.fit(rows, [0])
        if not places:
            return f"nothing would be sent: {unfit[0]}"
        request = self._maker.make(self._bodies.body(rows, texts, places), values_of(first, 0))
        head, blank, body = request.partition(b"\r\n\r\n")
        head = _SECRET.sub(rb"\1: ***", head.replace(b"\r\n", b"\n") + b"\n")
        for secret in self._secrets:
            head = head.replace(b": " + secret + b"\n", b": ***\n")
        shown = (head + blank[2:].replace(b"\r\n", b"\n") + body).decode("utf-8", "replace")
        if self._encoding != "none":
            shown += f"\n(sent with the body compressed by {self._encoding})"
        return shown

    def may_come_again(self, nsqd: str, message_id: bytes | None) -> None:
        """Nothing is done with messages."""

    def rotate(self) -> None:
        """There is nothing to finish."""

    def hurry(self) -> None:
        """Nothing is under way."""

    async def close(self) -> None:
        """Nothing is open."""

    async def abandon(self) -> None:
        """Nothing is open."""
