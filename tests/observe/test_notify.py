"""Datagrams to systemd, on path and abstract sockets; silence where there is none."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from nsqtools.observe.notify import STATUS_LENGTH_MAX, Notifier

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("abstract", [False, True])
def test_states_are_sent(tmp_path: Path, abstract: bool) -> None:
    name = f"@nsqtools-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0", 1) if abstract else name)
        receiver.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": name})
        assert notifier.is_active
        notifier.ready("archiving 3 topics")
        notifier.status("line one\nREADY=0 \x1b[2J")
        notifier.stopping()
        notifier.status("x" * 9999)
        notifier.extend(30.0)
        received = [receiver.recv(65536) for _ in range(5)]
    assert received[:3] == [
        b"READY=1\nSTATUS=archiving 3 topics",
        b"STATUS=line one READY=0 \\x1b[2J",
        b"STOPPING=1",
    ]
    assert received[3] == b"STATUS=" + b"x" * STATUS_LENGTH_MAX
    assert received[4] == b"EXTEND_TIMEOUT_USEC=30000000"


@pytest.mark.parametrize("address", ["", "@", "vsock:2:5", "relative"])
def test_nothing_happens_without_a_service_manager(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    assert not notifier.is_active
    notifier.ready()


def test_a_deaf_service_manager_does_no_harm(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    assert notifier.is_active
    notifier.stopping("going")
