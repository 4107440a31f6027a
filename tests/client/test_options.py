"""Settings of consumers and producers (spec: client-behaviour, part 1)."""

from __future__ import annotations

import socket

import pytest

from nsqtools.client.options import (
    ConsumerOptions,
    ProducerOptions,
    consumer_options,
    producer_options,
)
from nsqtools.options import NAME_VALUE, settings_of

# NSQ's names and defaults; where ours differ, the docstring of the module says why.
NSQ_DEFAULTS = {
    "dial_timeout": "1s",
    "read_timeout": "1m",
    "write_timeout": "1s",
    "lookupd_poll_interval": "1m",
    "lookupd_poll_jitter": "0.3",
    "lookupd_poll_timeout": "1m",
    "max_requeue_delay": "15m",
    "default_requeue_delay": "1m30s",
    "backoff_strategy": "exponential",
    "max_backoff_duration": "2m",
    "backoff_multiplier": "1s",
    "low_rdy_idle_timeout": "10s",
    "low_rdy_timeout": "30s",
    "rdy_redistribute_interval": "5s",
    "client_id": "",
    "hostname": "",
    "user_agent": "",
    "heartbeat_interval": "30s",
    "sample_rate": "0",
    "tls_v1": "false",
    "tls_root_ca_file": "",
    "tls_cert": "",
    "tls_key": "",
    "tls_insecure_skip_verify": "false",
    "deflate": "false",
    "deflate_level": "6",
    "snappy": "false",
    "output_buffer_size": "65536",  # NSQ: 16384
    "output_buffer_timeout": "50ms",  # NSQ: 250ms
    "msg_timeout": "0s",
    "auth_secret": "",
}


def consumer(*texts: str) -> tuple[ConsumerOptions, list[str]]:
    settings = [NAME_VALUE.parse(text) for text in texts]
    return consumer_options(settings, max_in_flight=200, auth_secret="", user_agent="t/1")


def test_nsq_names_and_defaults() -> None:
    ours = settings_of(ConsumerOptions())
    assert {key: ours.pop(key) for key in NSQ_DEFAULTS} == NSQ_DEFAULTS
    assert ours == {
        "tls_min_version": "tls1.2",
        "max_in_flight": "200",
        "max_in_flight_per_nsqd": "0",
        "max_attempts": "0",
        # Flags of the programs.
        "connections_per_nsqd": "1",
        "lookupd_connect_timeout": "5s",
        # NSQ's client tells its secret to whatever asks.
        "auth_plaintext": "false",
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("read_timeout,50ms", "invalid read_timeout ! 50ms < 100ms"),
        ("write_timeout,6m", "invalid write_timeout ! 6m > 5m"),
        ("lookupd_poll_jitter,1.5", "invalid lookupd_poll_jitter ! 1.5 > 1"),
        ("max_attempts,65536", "invalid max_attempts ! 65536 > 65535"),
        ("sample_rate,100", "invalid sample_rate ! 100 > 99"),
        ("deflate_level,0", "invalid deflate_level ! 0 < 1"),
        ("rdy_redistribute_interval,6s", "invalid rdy_redistribute_interval ! 6s > 5s"),
        ("tls_v1,maybe", "failed to coerce option tls_v1 (maybe) - should be true or false"),
        ("local_addr,127.0.0.1:1", "option local_addr cannot be set here: not supported"),
        ("auth_secert,hunter2", "invalid option auth_secert, did you mean auth_secret?"),
        (
            "heartbeat_interval,2m",
            "heartbeat_interval 120s must be less than read_timeout 60s",
        ),
        ("tls_cert,/c.pem", "tls_cert and tls_key are needed together"),
    ],
)
def test_a_bad_setting_is_a_mistake(text: str, problem: str) -> None:
    assert consumer(text)[1] == [problem]


def test_both_compressions_contradict() -> None:
    assert consumer("deflate", "snappy")[1] == ["cannot enable both deflate and snappy compression"]


def test_the_last_of_two_settings_counts() -> None:
    options, problems = consumer("sample_rate,5", "sample-rate,6")
    assert (options.sample_rate, problems) == (6, [])


@pytest.mark.parametrize(
    ("text", "milliseconds"), [("-1ns", -1), ("100us", 1), ("15s", 15_000), ("0s", 0)]
)
def test_identify_wants_milliseconds(text: str, milliseconds: int) -> None:
    options, problems = consumer(f"heartbeat_interval,{text}", f"output_buffer_timeout,{text}")
    assert not problems
    assert options.heartbeat_interval_ms == milliseconds
    assert options.output_buffer_timeout_ms == milliseconds


def test_who_we_are() -> None:
    options, _ = consumer()
    assert options.effective_hostname == socket.gethostname()
    assert options.effective_client_id == socket.gethostname().partition(".")[0]
    options, _ = consumer("client_id,me", "user_agent,mine/2")
    assert (options.effective_client_id, options.user_agent) == ("me", "mine/2")


def test_a_producer_takes_no_setting_of_consumers() -> None:
    settings = [NAME_VALUE.parse("dial_timeout,3s"), NAME_VALUE.parse("msg_timeout,3s")]
    options, problems = producer_options(settings, auth_secret="hunter2", user_agent="t/1")
    assert isinstance(options, ProducerOptions)
    assert (options.dial_timeout_s, options.auth_secret) == (3.0, "hunter2")
    assert len(problems) == 1
    assert problems[0].startswith("invalid option msg_timeout")
    assert "hunter2" not in repr(options)
