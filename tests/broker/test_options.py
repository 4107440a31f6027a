"""nsqd's flags, defaults and configuration file (spec: nsqd-http, part 4)."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from nsqtools.broker.options import NsqdOptions
from nsqtools.errors import OptionsError
from nsqtools.options import help_text, load, options_of, settings_of

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
    assert {key: value for key, value in ours.items() if value} == {
        "mem_queue_bytes": "32MiB",
        "durable": "false",
        "retain": "0",
        "start_from": "newest",
        "log_format": "text",
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


# Every option that nsqd 1.3 has, as in the file that comes with it.
NSQD_CFG = """
log_level = "info"
log_prefix = "[nsqd] "
verbose = false
worker_id = 5
id = 7
tcp_address = "0.0.0.0:4150"
http_address = "0.0.0.0:4151"
https_address = "0.0.0.0:4152"
broadcast_address = ""
broadcast_tcp_port = 0
broadcast_http_port = 0
nsqlookupd_tcp_addresses = ["127.0.0.1:4160"]
auth_http_addresses = []
auth_http_request_method = "get"
http_client_connect_timeout = "2s"
http_client_request_timeout = "5s"
topology_region = ""
topology_zone = ""
data_path = "/tmp"
mem_queue_size = 10000
max_bytes_per_file = 104857600
sync_every = 2500
sync_timeout = "2s"
queue_scan_worker_pool_max = 4
queue_scan_selection_count = 20
msg_timeout = "60s"
max_msg_timeout = "15m"
max_msg_size = 1048576
max_req_timeout = "1h"
max_body_size = 5242880
max_heartbeat_interval = "60s"
max_rdy_count = 2500
max_output_buffer_size = 65536
max_output_buffer_timeout = "30s"
min_output_buffer_timeout = "25ms"
output_buffer_timeout = 250
max_channel_consumers = 0
statsd_address = "127.0.0.1:8125"
statsd_interval = "60s"
statsd_mem_stats = true
statsd_prefix = "nsq.%s"
statsd_udp_packet_size = 508
statsd_exclude_ephemeral = false
e2e_processing_latency_percentiles = [1.0, 0.99]
e2e_processing_latency_window_time = "10m"
tls_cert = ""
tls_key = ""
tls_root_ca_file = ""
tls_client_auth_policy = ""
tls_required = false
tls_min_version = "tls1.0"
deflate = true
snappy = true
max_deflate_level = 6
enable_experiment = []
"""


def test_a_configuration_file_with_every_option_of_nsqd_loads(tmp_path: Path) -> None:
    file = tmp_path / "nsqd.cfg"
    file.write_text(NSQD_CFG)
    options = read("--config", str(file))
    assert options.output_buffer_timeout_s == 0.25
    assert {
        "--worker-id",
        "--verbose",
        "--node-id",
        "--statsd-address",
        "--e2e-processing-latency-percentile",
        "--deflate",
    } <= set(options.without_effect())
    assert not {"--tcp-address", "--tls-cert"} & set(options.without_effect())


def test_flags_without_effect_are_taken_as_nsqd_takes_them() -> None:
    options = read("-verbose", "-worker-id", "5", "--deflate=false")
    assert options.without_effect() == ["--verbose", "--worker-id", "--deflate"]
    assert read().without_effect() == []


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--node-idea=7"], "unknown flag --node-idea"),
        (["--msg-timeout=16m"], "--msg-timeout should not be longer than --max-msg-timeout"),
        (["--msg-timeout=0"], "should be at least 1ms"),
        (["--tcp-address="], "missing port in address"),
        (["--tls-cert=/x"], "--tls-cert cannot be had: this broker has no TLS"),
        (["--tls-required=tcp-https"], "--tls-required cannot be had: this broker has no TLS"),
        (["--auth-http-address=a:1"], "cannot be had: this broker has no authentication"),
        (["--max-msg-size=3GiB"], "should be at most"),
        (["--retain=24"], "for --retain: has no unit, write for example 24h or 24GiB"),
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


def test_what_has_no_effect_is_told_last() -> None:
    text = help_text("nsqd", "The broker.", options_of(NsqdOptions), examples=[], exit_status={})
    assert text.index("--tcp-address ") < text.index("--config ") < text.index("--worker-id ")
