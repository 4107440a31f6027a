from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.errors import ProtocolError
from nsqtools.wire.gojson import go_json
from nsqtools.wire.identify import (
    ClientSettings,
    IdentifyReply,
    IdentifyRequest,
    ServerLimits,
    default_settings,
    identify_response,
    parse_identify,
)

LIMITS = ServerLimits(version="1.3.0")
REFERENCE_RESPONSE = (
    b'{"max_rdy_count":2500,"version":"1.3.0","max_msg_timeout":900000,"msg_timeout":60000,'
    b'"tls_v1":false,"deflate":false,"deflate_level":6,"max_deflate_level":6,"snappy":false,'
    b'"sample_rate":0,"auth_required":false,"output_buffer_size":16384,'
    b'"output_buffer_timeout":250,"topology_region":"","topology_zone":""}'
)
REQUEST = IdentifyRequest(client_id="c", hostname="h", user_agent="test/1")


def ask(**fields: object) -> ClientSettings:
    return parse_identify(json.dumps({"feature_negotiation": True, **fields}).encode(), LIMITS)


def refusal(body: bytes, limits: ServerLimits = LIMITS) -> str:
    with pytest.raises(ProtocolError) as caught:
        parse_identify(body, limits)
    assert caught.value.fatal
    return str(caught.value)


def test_the_answer_is_nsqds_byte_for_byte() -> None:
    assert identify_response(ask(), LIMITS) == REFERENCE_RESPONSE


def test_without_negotiation_the_answer_is_ok_but_values_hold() -> None:
    body = b'{"heartbeat_interval":5000,"sample_rate":7,"deflate":true,"snappy":true}'
    settings = parse_identify(body, LIMITS)
    assert identify_response(settings, LIMITS) == b"OK"
    assert settings.heartbeat_interval_ms == 5000
    assert settings.sample_rate == 7
    assert not settings.deflate
    assert not settings.snappy


@pytest.mark.parametrize("body", [b"{}", b"null", b' {"unknown":[{"a":[1.5,null]}]} '])
def test_an_empty_request_gets_the_defaults_and_no_names(body: bytes) -> None:
    assert parse_identify(body, LIMITS) == default_settings(LIMITS)


def test_keys_match_without_regard_to_case_and_the_last_one_wins() -> None:
    settings = parse_identify(b'{"Client_ID":"a","CLIENT_id":"b","hostname":null}', LIMITS)
    assert settings.client_id == "b"
    assert settings.hostname == ""


def test_go_folds_two_letters_beyond_ascii() -> None:
    body = '{"\u017fample_rate":3,"ho\u017ftname":"x"}'.encode()
    settings = parse_identify(body, LIMITS)
    assert (settings.sample_rate, settings.hostname) == (3, "x")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"x"',
        b"{",
        b"{} {}",
        b'{"heartbeat_interval":1000.0}',
        b'{"heartbeat_interval":1e3}',
        b'{"heartbeat_interval":"1s"}',
        b'{"heartbeat_interval":true}',
        b'{"heartbeat_interval":9223372036854775808}',
        b'{"sample_rate":2147483648}',
        b'{"client_id":1}',
        b'{"snappy":1}',
        b'{"snappy":"true"}',
        b'{"x":NaN}',
        b'{"x":Infinity}',
        b'{"client_id":"a\nb"}',
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x":' + b"9" * 10_000 + b"}",
    ],
)
def test_what_go_cannot_decode_is_refused_with_its_text(body: bytes) -> None:
    assert refusal(body) == "E_BAD_BODY IDENTIFY failed to decode JSON body"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("heartbeat_interval", 999, "heartbeat interval (999)"),
        ("heartbeat_interval", 60_001, "heartbeat interval (60001)"),
        ("heartbeat_interval", -2, "heartbeat interval (-2)"),
        ("output_buffer_timeout", 24, "output buffer timeout (24)"),
        ("output_buffer_timeout", 30_001, "output buffer timeout (30001)"),
        ("output_buffer_size", 63, "output buffer size (63)"),
        ("output_buffer_size", 65_537, "output buffer size (65537)"),
        ("sample_rate", 100, "sample rate (100)"),
        ("sample_rate", -1, "sample rate (-1)"),
        ("msg_timeout", 999, "msg timeout (999)"),
        ("msg_timeout", 900_001, "msg timeout (900001)"),
    ],
)
def test_a_value_out_of_range_is_named(key: str, value: int, text: str) -> None:
    body = json.dumps({key: value}).encode()
    assert refusal(body) == f"E_BAD_BODY IDENTIFY {text} is invalid"


def test_values_are_checked_in_nsqds_order() -> None:
    wrong = {
        "msg_timeout": 1,
        "sample_rate": 100,
        "output_buffer_size": 1,
        "output_buffer_timeout": 1,
        "heartbeat_interval": 1,
    }
    found = []
    while wrong:
        text = refusal(json.dumps(wrong).encode())
        found.append(next(key for key in wrong if key.replace("_", " ") in text))
        del wrong[found[-1]]
    assert found == [
        "heartbeat_interval",
        "output_buffer_timeout",
        "output_buffer_size",
        "sample_rate",
        "msg_timeout",
    ]


def test_minus_one_switches_off() -> None:
    settings = ask(heartbeat_interval=-1, output_buffer_size=-1, output_buffer_timeout=100)
    assert settings.heartbeat_interval_ms == 0
    assert settings.output_buffer_size == 1
    assert settings.output_buffer_timeout_ms == 0
    assert b'"output_buffer_size":1,"output_buffer_timeout":0' in identify_response(
        settings, LIMITS
    )
    assert ask(output_buffer_timeout=-1).output_buffer_timeout_ms == 0


def test_upgrades_are_granted_as_the_broker_allows() -> None:
    assert ask(deflate=True, deflate_level=9).deflate_level == 6
    assert ask(deflate=True, deflate_level=3).deflate_level == 3
    assert ask(deflate=True, deflate_level=-4).deflate_level == 6
    assert ask(deflate_level=3).deflate_level == 6
    assert ask(snappy=True).snappy
    assert not ask(tls_v1=True).tls_v1
    body = b'{"feature_negotiation":true,"tls_v1":true,"deflate":true,"snappy":true}'
    no_snappy = replace(LIMITS, snappy=False, tls_v1=True)
    settings = parse_identify(body, no_snappy)
    assert (settings.tls_v1, settings.deflate, settings.snappy) == (True, True, False)
    assert refusal(body) == ("E_IDENTIFY_FAILED cannot enable both deflate and snappy compression")


def test_a_second_identify_keeps_what_it_leaves_out() -> None:
    first = ask(heartbeat_interval=5000, output_buffer_size=-1, msg_timeout=2000)
    second = parse_identify(b'{"client_id":"x"}', LIMITS, first)
    assert second.heartbeat_interval_ms == 5000
    assert second.output_buffer_size == 1
    assert second.output_buffer_timeout_ms == 0
    assert second.msg_timeout_ms == 2000
    assert second.client_id == "x"


def test_broken_text_becomes_replacement_characters() -> None:
    settings = parse_identify(b'{"client_id":"\\ud800a","hostname":"\xff"}', LIMITS)
    assert settings.client_id == "\ufffda"
    assert settings.hostname == "\ufffd"


def test_go_json_escapes_what_go_escapes() -> None:
    assert go_json({"a": "<é&\u2028>\x01"}) == (
        '{"a":"\\u003cé\\u0026\\u2028\\u003e\\u0001"}'.encode()
    )


@given(
    name=st.text(max_size=8),
    heartbeat=st.sampled_from([-1, 1000, 60000]),
    rate=st.integers(0, 99),
    size=st.sampled_from([-1, 0, 64, 65536]),
    deflate=st.booleans(),
)
def test_both_roles_agree(name: str, heartbeat: int, rate: int, size: int, deflate: bool) -> None:
    request = replace(
        REQUEST,
        client_id=name,
        heartbeat_interval_ms=heartbeat,
        sample_rate=rate,
        output_buffer_size=size,
        deflate=deflate,
        snappy=not deflate,
    )
    settings = parse_identify(request.to_json(), LIMITS)
    reply = IdentifyReply.parse(identify_response(settings, LIMITS), request)
    assert settings.client_id == name
    assert settings.heartbeat_interval_ms == max(0, heartbeat)
    assert reply.sample_rate == rate
    assert (reply.deflate, reply.snappy) == (deflate, not deflate)
    assert reply.max_rdy_count == 2500


def test_topology_is_sent_only_when_set() -> None:
    assert b"topology" not in REQUEST.to_json()
    asked = replace(REQUEST, topology_region="r", topology_zone="z")
    settings = parse_identify(asked.to_json(), LIMITS)
    assert (settings.topology_region, settings.topology_zone) == ("r", "z")


def test_a_plain_ok_means_the_defaults() -> None:
    reply = IdentifyReply.parse(b"OK")
    assert not reply.negotiated
    assert (reply.max_rdy_count, reply.msg_timeout_ms) == (2500, 60_000)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"NO",
        b"null",
        b"[]",
        b'{"max_rdy_count":0}',
        b'{"max_rdy_count":-5}',
        b'{"max_rdy_count":4294967296}',
        b'{"max_rdy_count":"2500"}',
        b'{"msg_timeout":0}',
        b'{"sample_rate":101}',
        b'{"deflate":true,"snappy":true}',
        b'{"version":1}',
    ],
)
def test_a_reply_that_makes_no_sense_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="IDENTIFY reply"):
        IdentifyReply.parse(body)


@pytest.mark.parametrize("upgrade", ["tls_v1", "deflate", "snappy"])
def test_an_upgrade_nobody_asked_for_is_refused(upgrade: str) -> None:
    body = json.dumps({upgrade: True}).encode()
    assert getattr(IdentifyReply.parse(body), upgrade)
    with pytest.raises(ProtocolError, match=f"{upgrade} granted but not asked for"):
        IdentifyReply.parse(body, REQUEST)


@given(st.binary(max_size=64))
def test_only_the_documented_error_escapes(body: bytes) -> None:
    with suppress(ProtocolError):
        parse_identify(body, LIMITS)
    with suppress(ProtocolError):
        IdentifyReply.parse(b"{" + body)
