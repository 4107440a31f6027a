"""Word to systemd that we are ready, stopping, or how things are (sd_notify's datagrams).

Nothing happens where NOTIFY_SOCKET is not set, and nothing fails where systemd does not listen:
a service manager that is away must not stop an archive.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from nsqtools.observe.log import get_log
from nsqtools.options import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "NOTIFY_SOCKET"
STATUS_LENGTH_MAX = 400


class Notifier:
    """Sends states to the service manager named in `environ`."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = socket_address(environ.get(VARIABLE, ""))

    @property
    def is_active(self) -> bool:
        """Whether there is a service manager to tell."""
        return bool(self._address)

    def ready(self, status: str = "") -> None:
        self._send("READY=1", status)

    def stopping(self, status: str = "") -> None:
        self._send("STOPPING=1", status)

    def status(self, status: str) -> None:
        """One line that `systemctl status` shows."""
        self._send("", status)

    def extend(self, seconds: float) -> None:
        """Asks for `seconds` more from now on for the start or the end that is under way."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}", "")

    def _send(self, state: str, status: str) -> None:
        if not self._address:
            return
        lines = [state] if state else []
        if status:
            # A newline would begin another assignment; and the words can be a stranger's.
            lines.append("STATUS=" + printable(" ".join(status.split()))[:STATUS_LENGTH_MAX])
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            get_log("notify").debug("service manager not told", error=error)


def socket_address(text: str) -> str:
    """The address of a NOTIFY_SOCKET; '' for none and for kinds other than unix sockets.

    A leading @ stands for the NUL of an abstract socket.
    """
    if text.startswith("@") and len(text) > 1:
        return "\0" + text[1:]
    return text if text.startswith("/") else ""
