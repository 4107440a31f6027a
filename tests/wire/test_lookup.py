from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.errors import ProtocolError
from nsqtools.wire import lookup
from nsqtools.wire.lookup import (
    Answer,
    CommandReader,
    Identify,
    LookupCommand,
    PeerInfo,
    Ping,
    Register,
    ReplyReader,
    Unregister,
)

NSQD = PeerInfo(broadcast_address="h", hostname="h", tcp_port=4150, http_port=4151, version="1.3.0")
IDENTIFY_JSON = (
    b'{"version":"1.3.0","tcp_port":4150,"http_port":4151,"hostname":"h",'
    b'"broadcast_address":"h","topology_zone":"","topology_region":""}'
)
IDENTIFY = b"IDENTIFY\n\x00\x00\x00\x83" + IDENTIFY_JSON
CONVERSATION = (
    b"  V1PING\n"
    + IDENTIFY
    + b"REGISTER t\nREGISTER t c#ephemeral\n \tUNREGISTER t c\r\nUNREGISTER t\nPING\n"
)
COMMANDS: list[LookupCommand] = [
    Ping(),
    Identify(peer=NSQD),
    Register(topic="t", channel=None),
    Register(topic="t", channel="c#ephemeral"),
    Unregister(topic="t", channel="c"),
    Unregister(topic="t", channel=None),
    Ping(),
]


def read(reader: CommandReader, data: bytes) -> list[LookupCommand]:
    reader.receive_data(data)
    found = []
    while (command := reader.next_command()) is not None:
        found.append(command)
    return found


def refusal(data: bytes) -> str:
    reader = CommandReader()
    with pytest.raises(ProtocolError) as caught:
        read(reader, data)
    with pytest.raises(ProtocolError) as again:
        read(reader, b"PING\n")
    assert again.value is caught.value
    assert caught.value.fatal
    return str(caught.value)


def test_the_client_writes_nsqds_bytes() -> None:
    assert lookup.encode_identify(NSQD) == IDENTIFY
    assert lookup.encode_register("t") == b"REGISTER t\n"
    assert lookup.encode_register("t", "c") == b"REGISTER t c\n"
    assert lookup.encode_unregister("t", "c#ephemeral") == b"UNREGISTER t c#ephemeral\n"


@pytest.mark.parametrize(("topic", "channel"), [("a b", None), ("", None), ("t", "c\nPING")])
def test_the_client_writes_no_bad_name(topic: str, channel: str | None) -> None:
    for encode in (lookup.encode_register, lookup.encode_unregister):
        with pytest.raises(ProtocolError, match="is not valid"):
            encode(topic, channel)


def test_a_whole_conversation() -> None:
    assert read(CommandReader(), CONVERSATION) == COMMANDS


def test_a_conversation_cut_anywhere() -> None:
    for at in range(len(CONVERSATION) + 1):
        reader = CommandReader()
        assert read(reader, CONVERSATION[:at]) + read(reader, CONVERSATION[at:]) == COMMANDS


def test_a_conversation_byte_by_byte() -> None:
    reader = CommandReader()
    assert [c for byte in CONVERSATION for c in read(reader, bytes([byte]))] == COMMANDS


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"  V2", "E_BAD_PROTOCOL"),
        (b"GET / HTTP/1.1\r\n", "E_BAD_PROTOCOL"),
        (b"  V1\n", "E_INVALID invalid command "),
        (b"  V1ping\n", "E_INVALID invalid command ping"),
        (b"  V1REGISTER t\n", "E_INVALID client must IDENTIFY"),
        (b"  V1UNREGISTER\n", "E_INVALID client must IDENTIFY"),
        (b"  V1" + IDENTIFY + IDENTIFY, "E_INVALID cannot IDENTIFY again"),
        (b"  V1" + IDENTIFY + b"REGISTER\n", "E_INVALID REGISTER insufficient number of params"),
        (b"  V1" + IDENTIFY + b"REGISTER  t\n", "E_BAD_TOPIC REGISTER topic name '' is not valid"),
        (
            b"  V1" + IDENTIFY + b"REGISTER t! c\n",
            "E_BAD_TOPIC REGISTER topic name 't!' is not valid",
        ),
        (
            b"  V1" + IDENTIFY + b"UNREGISTER t c!\n",
            "E_BAD_CHANNEL UNREGISTER channel name 'c!' is not valid",
        ),
        (b"  V1IDENTIFY\n\xff\xff\xff\xff", "E_BAD_BODY IDENTIFY failed to read body"),
        (b"  V1IDENTIFY\n\x7f\xff\xff\xff", "E_BAD_BODY IDENTIFY failed to read body"),
        (b"  V1IDENTIFY\n\0\0\0\1[", "E_BAD_BODY IDENTIFY failed to decode JSON body"),
        (b"  V1IDENTIFY\n\0\0\0\0", "E_BAD_BODY IDENTIFY failed to decode JSON body"),
        (b"  V1IDENTIFY\n\0\0\0\2{}", "E_BAD_BODY IDENTIFY missing fields"),
        (b"  V1IDENTIFY\n\0\0\0\4null", "E_BAD_BODY IDENTIFY missing fields"),
        (b"  V1" + b"x" * 20_000, "E_INVALID command line too long"),
    ],
)
def test_the_servers_refusals(sent: bytes, text: str) -> None:
    assert refusal(sent) == text


def test_an_empty_channel_is_none() -> None:
    reader = CommandReader()
    read(reader, b"  V1" + IDENTIFY)
    assert read(reader, b"REGISTER t  x\n") == [Register(topic="t", channel=None)]


@pytest.mark.parametrize("missing", ["broadcast_address", "tcp_port", "http_port", "version"])
def test_each_field_is_needed(missing: str) -> None:
    fields = {key: value for key, value in json.loads(IDENTIFY_JSON).items() if key != missing}
    body = json.dumps(fields).encode()
    sent = b"  V1IDENTIFY\n" + len(body).to_bytes(4, "big") + body
    assert refusal(sent) == "E_BAD_BODY IDENTIFY missing fields"


@pytest.mark.parametrize(
    ("sent", "part"), [(b"  V1IDENTIFY\n\0\0", "body size"), (b"  V1IDENTIFY\n\0\0\0\5{", "body")]
)
def test_an_end_inside_identify(sent: bytes, part: str) -> None:
    reader = CommandReader()
    assert read(reader, sent) == []
    with pytest.raises(ProtocolError) as caught:
        reader.receive_eof()
    assert str(caught.value) == f"E_BAD_BODY IDENTIFY failed to read {part}"


def test_an_end_between_commands_is_none() -> None:
    reader = CommandReader()
    read(reader, b"  V1PING\nPI")
    reader.receive_eof()


def test_an_error_reply_repeats_the_bytes() -> None:
    reader = CommandReader()
    with pytest.raises(ProtocolError) as caught:
        read(reader, b"  V1\xff\xfe\n")
    assert lookup.encode_error(caught.value) == b"\0\0\0\x1cE_INVALID invalid command \xff\xfe"


@given(st.binary(max_size=60), st.booleans())
def test_only_the_documented_error_escapes(data: bytes, identified: bool) -> None:
    with suppress(ProtocolError):
        read(CommandReader(), b"  V1" + (IDENTIFY if identified else b"") + data)
    with suppress(ProtocolError):
        read(CommandReader(), b"  V1IDENTIFY\n" + len(data).to_bytes(4, "big") + data)
    with suppress(ProtocolError):
        lookup.parse_identify_reply(b"{" + data)
    with suppress(ProtocolError):
        lookup.parse_producers(b'{"producers":[' + data + b"]}")


@given(st.lists(st.binary(max_size=30), max_size=5), st.integers(0, 200))
def test_replies_cut_anywhere(replies: list[bytes], at: int) -> None:
    wire = b"".join(map(lookup.encode_reply, replies))
    reader = ReplyReader()
    found = []
    for piece in (wire[:at], wire[at:]):
        reader.receive_data(piece)
        while (reply := reader.next_reply()) is not None:
            found.append(reply)
    assert found == replies


@pytest.mark.parametrize("length", [b"\xff\xff\xff\xff", b"\x00\x01\x00\x01", b"HTTP"])
def test_a_reply_of_a_bad_length_is_refused(length: bytes) -> None:
    reader = ReplyReader()
    reader.receive_data(length)
    for _ in range(2):
        with pytest.raises(ProtocolError, match="bytes, expected at most 65536"):
            reader.next_reply()


def test_both_roles_agree_on_identify() -> None:
    server = replace(NSQD, broadcast_address="lookup1", hostname="lookup1", tcp_port=4160)
    reply = lookup.identify_reply(replace(server, http_port=4161))
    assert reply == (
        b'{"broadcast_address":"lookup1","hostname":"lookup1","http_port":4161,'
        b'"tcp_port":4160,"version":"1.3.0"}'
    )
    assert lookup.parse_identify_reply(reply).http_address == "lookup1:4161"


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (b"E_INVALID client must IDENTIFY", "E_INVALID client must IDENTIFY"),
        (b"E_BAD_PROTOCOL", "E_BAD_PROTOCOL"),
        (b"", "E_INVALID unexpected reply b''"),
        (b"HTTP/1.1 400", "E_INVALID unexpected reply b'HTTP/1.1 400'"),
    ],
)
def test_error_replies(reply: bytes, text: str) -> None:
    for check in (lookup.check_ok, lookup.parse_identify_reply):
        with pytest.raises(ProtocolError) as caught:
            check(reply)
        assert str(caught.value) == text
    lookup.check_ok(b"OK")


@pytest.mark.parametrize(
    "reply",
    [
        b"{",
        b"{}",
        b'{"broadcast_address":1}',
        b'{"broadcast_address":"a","http_port":0}',
        b'{"broadcast_address":"a/b","http_port":1}',
    ],
)
def test_an_identify_reply_that_makes_no_sense(reply: bytes) -> None:
    with pytest.raises(ProtocolError):
        lookup.parse_identify_reply(reply)


@pytest.mark.parametrize(
    ("host", "joined"),
    [
        ("nsqd-1.example_a.com", "nsqd-1.example_a.com:1"),
        ("10.0.0.1", "10.0.0.1:1"),
        ("::1", "[::1]:1"),
        ("[::1]", "[::1]:1"),
        ("fe80::1%eth0", "[fe80::1%eth0]:1"),
    ],
)
def test_addresses(host: str, joined: str) -> None:
    assert lookup.join_address(host, 1) == joined


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("", 1),
        ("a", 0),
        ("a", -1),
        ("a", 65_536),
        ("-a", 1),
        ("a b", 1),
        ("a/b", 1),
        ("a@b", 1),
        ("a\nb", 1),
        ("é", 1),
        ("[a]", 1),
        ("a:1", 1),
        ("fe80::1%", 1),
        ("fe80::1%a/b", 1),
        ("a" * 254, 1),
    ],
)
def test_what_is_no_address(host: str, port: int) -> None:
    with pytest.raises(ProtocolError):
        lookup.join_address(host, port)


def test_addresses_are_split_again() -> None:
    assert lookup.split_address("h:1") == ("h", 1)
    assert lookup.split_address("[::1]:65535") == ("::1", 65_535)


@pytest.mark.parametrize("text", ["", "h", "h:", ":1", "h:x", "h:-1", "::1:1", "h:0", "h:0070000"])
def test_what_cannot_be_split(text: str) -> None:
    with pytest.raises(ProtocolError):
        lookup.split_address(text)


def producers(*entries: object) -> bytes:
    return json.dumps({"channels": [], "producers": entries}).encode()


def test_producers_are_checked_one_by_one() -> None:
    answer = lookup.parse_producers(
        producers(
            {"broadcast_address": "a", "tcp_port": 4150},
            {"broadcast_address": "::1", "tcp_port": 4150},
            {"broadcast_address": "b", "tcp_port": 70_000},
            {"broadcast_address": "", "tcp_port": 1},
            {"broadcast_address": 7, "tcp_port": 1},
            {"broadcast_address": "a", "tcp_port": 4150},
        )
    )
    assert answer.values == {"a:4150", "[::1]:4150"}
    assert len(answer.refused) == 3


def test_wrapped_answers_of_old_versions() -> None:
    inner = json.loads(producers({"broadcast_address": "a", "tcp_port": 1}))
    wrapped = {"status_code": 200, "status_txt": "OK", "data": inner}
    answer = lookup.parse_producers(json.dumps(wrapped).encode())
    assert answer == Answer(values=frozenset({"a:1"}))
    wrapped["status_code"] = 500
    with pytest.raises(ProtocolError, match="status_code 500 OK"):
        lookup.parse_producers(json.dumps(wrapped).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"data":[]}',
        b'{"data":null}',
        b'{"producers":{}}',
        b'{"producers":[1]}',
        b'{"producers":["a:1"]}',
        producers(*[{}] * 4097),
    ],
)
def test_what_is_no_answer(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="answer not understood"):
        lookup.parse_producers(body)


def test_a_list_may_be_null() -> None:
    assert lookup.parse_producers(b'{"producers":null}') == Answer()


def test_names() -> None:
    answer = lookup.parse_names(b'{"topics":["b","a b","a#ephemeral","../x"]}', "topics")
    assert answer.values == {"b", "a#ephemeral"}
    assert answer.refused == ("a b", "../x")
    for body in (b'{"topics":[1]}', b'{"topics":"x"}', b'{"channels":[]}'):
        with pytest.raises(ProtocolError, match="answer not understood"):
            lookup.parse_names(body, "topics")
