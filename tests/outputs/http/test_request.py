"""Requests, URLs and templates: everything is escaped for where it stands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.outputs.http.request import HEADER, Header, Method, RequestMaker, values_of
from nsqtools.outputs.http.template import Template, escape_header, escape_url
from nsqtools.outputs.http.url import Origin, split_url
from nsqtools.wire.messages import Messages, encode_payload

FIXED = {"topic": "orders", "channel": "c#ephemeral"}
VALUES = {"id": "0123456789abcdef", "timestamp": "17", "attempts": "2", "nsqd": "[::1]:4150"}


def make(
    url: str, *headers: str, method: Method = "POST", body: bytes = b"body"
) -> tuple[bytes, bytes]:
    """Head and body of a request."""
    made = RequestMaker(method, url, [HEADER.parse(header) for header in headers], fixed=FIXED)
    head, _, rest = made.make(body, VALUES).partition(b"\r\n\r\n")
    return head, rest


def test_a_post() -> None:
    head, body = make("http://example.test/put?x=1", "A: b")
    assert head.split(b"\r\n") == [
        b"POST /put?x=1 HTTP/1.1",
        b"Host: example.test",
        b"A: b",
        b"Content-Length: 4",
    ]
    assert body == b"body"


def test_a_get_has_no_body() -> None:
    head, body = make("http://h/?a=%20%s&b=%41", method="GET", body=b"a b/\xe9&%s\r\n")
    assert head == b"GET /?a=%20a+b%2F%E9%26%25s%0D%0A&b=%41 HTTP/1.1\r\nHost: h"
    assert body == b""


def test_fields_are_filled_in() -> None:
    head, _ = make(
        "https://{topic}.h.test:8443/{channel}/{id}?n={nsqd}&t={timestamp}",
        "X-Tries: {attempts} of {topic} 100%",
    )
    assert head.split(b"\r\n")[:3] == [
        b"POST /c%23ephemeral/0123456789abcdef?n=%5B%3A%3A1%5D%3A4150&t=17 HTTP/1.1",
        b"Host: orders.h.test:8443",
        b"X-Tries: 2 of orders 100%",
    ]


def test_the_last_of_a_name_counts_and_host_can_be_named() -> None:
    head, _ = make("http://h/", "Host: other", "A: 1", "a: 2")
    assert head.split(b"\r\n")[1:3] == [b"Host: other", b"a: 2"]


def test_other_characters_in_urls_are_encoded_once() -> None:
    head, _ = make("http://h/ü%20x")
    assert head.startswith(b"POST /%C3%BC%20x HTTP/1.1\r\n")


@given(st.text(), st.binary())
def test_nothing_in_a_message_ends_a_line(text: str, body: bytes) -> None:
    values = dict.fromkeys(VALUES, text)
    made = RequestMaker(
        "GET", "http://h/{id}?{nsqd}=%s", [Header(name="A", value="{id}")], fixed=FIXED
    )
    request = made.make(body, values)
    assert request.count(b"\n") == 4
    assert request.count(b"\r") == 4
    assert request.count(b" ") == 2 + 2 + text.count(" "), (
        "one space in a request line more is a break"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not an http"),
        ("ftp://h/", "not an http"),
        ("h:80", "not an http"),
        ("http://h/#part", "not an http"),
        ("http://h/a b", "space"),
        ("http://h/a\r\nX: y", "control"),
        ("http://user:secret@h/", "credentials"),
        ("http:///x", "missing host"),
        ("http://h:0/", "missing host or port"),
        ("http://h:99999/", "port"),
        ("http://{id}/", "only {topic} and {channel}"),
        ("http://{channel}/", "host name"),
        ("http+unix://run/", "absolute path"),
        ("http://h/" + "x" * 9000, "longer than"),
        ("http://h/{nothing}", "unknown field {nothing}, known are {topic} {channel} {id}"),
    ],
)
def test_what_is_no_url_of_an_endpoint(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace("{", r"\{")) as caught:
        RequestMaker("POST", text, [], fixed=FIXED)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("http://h", Origin(is_tls=False, host="h", port=80)),
        ("HTTPS://h/x", Origin(is_tls=True, host="h", port=443)),
        ("http://[::1]:8080/x", Origin(is_tls=False, host="::1", port=8080)),
        (
            "http+unix://%2Frun%2Fa.sock/x",
            Origin(is_tls=False, host="", port=0, socket_path="/run/a.sock"),
        ),
    ],
)
def test_where_to_connect(text: str, origin: Origin) -> None:
    assert split_url(text, {}).origin == origin


@pytest.mark.parametrize(
    "text",
    [
        *("a", "a:", ":b", " : b", "a b: c", "ä: b", "A: b\r\nC: d", "A: b\x00", "A: {nothing}"),
        *("Content-Length: 3", "transfer-encoding: chunked", "Connection: close"),
    ],
)
def test_what_is_no_header(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        HEADER.parse(text)


def test_a_header_is_not_shown() -> None:
    made = HEADER.parse("Authorization: Bearer secret")
    assert HEADER.render(made) == "Authorization: ***"
    assert "secret" not in repr(made)


def test_a_template_without_fields_of_a_message_is_fixed() -> None:
    assert Template("{topic} 100%", fixed=FIXED, escape=escape_url).is_fixed
    varying = Template("{topic} {id} %d %s", fixed=FIXED, escape=escape_header)
    assert not varying.is_fixed
    assert varying.render({"id": "a\nb"}) == "orders a%0Ab %d %s"


def test_values_of_a_message() -> None:
    messages = Messages([encode_payload(17, 2, b"0123456789abcdef", b"x")], nsqd="[::1]:4150")
    assert values_of(messages, 0) == VALUES


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("http://h/a/{topic}?token=x", "http://h/a/orders"),
        (
            "https://hooks.example/services/T00000000/B00000000/Xa1bXa1bXa1bXa1bXa1bXa1b",
            "https://hooks.example/services/T00000000/B00000000/***",
        ),
        ("http://h/a-long-name-without-any-number", "http://h/a-long-name-without-any-number"),
    ],
)
def test_what_is_told_of_a_url(url: str, label: str) -> None:
    """The URLs of webhooks hold their key in the path."""
    assert RequestMaker("POST", url, [], fixed=FIXED).label == label
