"""nsqd's flags, defaults and configuration file (spec: nsqd-http, part 4)."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from nsqtools.broker.options import NsqdOptions
from nsqtools.errors import OptionsError
from nsqtools.options import load, settings_of

if TYPE_CHECKING:
    from pathlib import Path

NSQ_DEFAULTS = {
    "tcp_address": "0.0.0.0:4150",
    "http_address": "0.0.0.0:4151",
    "broadcast_address": "",
    "broadcast_tcp_port": "0",
    "broadcast_http_port": "0",
    "lookupd_tcp_address": "",
    "http_client_connect_timeout": "2s",
    "http_client_request_timeout": "5s",
    "data_path": ".",
    "mem_queue_size": "10000",
    "max_bytes_per_file": "100MiB",
    "sync_every": "2500",
    "sync_timeout": "2s",
    "msg_timeout": "1m",
    "max_msg_timeout": "15m",
    "max_msg_size": "1MiB",
    "max_body_size": "5MiB",
    "max_req_timeout": "1h",
    "max_heartbeat_interval": "1m",
    "max_rdy_count": "2500",
    "max_channel_consumers": "0",
    "max_output_buffer_size": "64KiB",
    "max_output_buffer_timeout": "30s",
    "min_output_buffer_timeout": "25ms",
    "output_buffer_timeout": "250ms",
    "log_level": "info",
    "log_prefix": "[nsqd] ",
}


def read(*argv: str) -> NsqdOptions:
    return load(NsqdOptions, "nsqd", argv, {})


def test_nsq_flags_keep_their_names_and_defaults() -> None:
    ours = settings_of(read())
    assert {key: ours.pop(key) for key in NSQ_DEFAULTS} == NSQ_DEFAULTS
    assert ours == {
        "mem_queue_bytes": "32MiB",
        "durable": "false",
        "retain": "0",
        "start_from": "newest",
        "log_format": "text",
        "status_address": "",
    }


def test_an_nsqd_configuration_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "nsqd.cfg"
    file.write_text(
        'nsqlookupd_tcp_addresses = ["a:4160", "b:4160"]\n'
        "msg_timeout = 5000\n"
        'max_msg_timeout = "1m"\n'
        'http_address = ""\n'
    )
    options = read("--config", str(file))
    assert options.lookupd_tcp_address == ("a:4160", "b:4160")
    assert options.msg_timeout_s == 5.0
    assert options.max_msg_timeout_s == 60.0
    assert options.http_address == ""


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--node-id=7"], "unknown flag --node-id"),
        (["--msg-timeout=16m"], "--msg-timeout should not be longer than --max-msg-timeout"),
        (["--msg-timeout=0"], "should be at least 1ms"),
        (["--tcp-address="], "missing port in address"),
        (["--tls-cert=/x"], "unknown flag --tls-cert"),
        (["--max-msg-size=3GiB"], "should be at most"),
        (
            ["--output-buffer-timeout=31s"],
            "--output-buffer-timeout should not be longer than --max-output-buffer-timeout",
        ),
    ],
)
def test_mistakes(argv: list[str], problem: str) -> None:
    with pytest.raises(OptionsError) as caught:
        read(*argv)
    assert len(caught.value.problems) == 1
    assert problem in caught.value.problems[0]


def test_names_come_from_the_host() -> None:
    host = socket.gethostname()
    options = read()
    assert options.effective_broadcast_address == host
    assert read("--broadcast-address=b.example").effective_broadcast_address == "b.example"
