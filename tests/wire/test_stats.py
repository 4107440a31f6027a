"""What an nsqd says of a channel's clients, and what it may say instead."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.errors import ProtocolError
from nsqtools.wire.stats import TEXT_LENGTH_MAX, ChannelClient, parse_channel_clients

CLIENTS = [
    {"client_id": "a", "hostname": "web1", "user_agent": "go-nsq/1.1.0"},
    {"hostname": "x" * 1000},
]
TOPICS = [
    {"topic_name": "other", "channels": [{"channel_name": "c", "clients": CLIENTS}]},
    {
        "topic_name": "t",
        "channels": [
            {"channel_name": "c", "clients": CLIENTS},
            {"channel_name": "d", "clients": None},
        ],
    },
]
FOUND = [ChannelClient("go-nsq/1.1.0", "web1"), ChannelClient("", "x" * TEXT_LENGTH_MAX)]


@pytest.mark.parametrize(
    "answer", [{"topics": TOPICS}, {"status_code": 200, "data": {"topics": TOPICS}}]
)
def test_clients_of_a_channel(answer: object) -> None:
    body = json.dumps(answer).encode()
    assert parse_channel_clients(body, "t", "c") == FOUND
    assert parse_channel_clients(body, "t", "d") == []
    assert parse_channel_clients(body, "x", "c") == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"OK",
        b"[]",
        b'{"topics": 1}',
        b'{"topics": [1]}',
        b'{"topics": [{"topic_name": "t", "channels": [{"channel_name": "c", "clients": [7]}]}]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_answer(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_channel_clients(body, "t", "c")


@given(st.binary())
def test_nothing_else_escapes(body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        parse_channel_clients(body, "t", "c")
