"""Which proxy is asked: the environment's words, in curl's meaning and with Go's care for loopback."""

from __future__ import annotations

import base64

import pytest

from nsqtools.outputs.http.proxy import (
    Bypass,
    Proxies,
    ProxyKind,
    forced_on,
    from_environment,
    split_proxy,
)
from nsqtools.outputs.http.url import Origin, split_url

SECRET = "s3cr3t"


def origin(url: str) -> Origin:
    return split_url(url, {}).origin


@pytest.mark.parametrize(
    ("text", "host", "port", "user"),
    [
        ("http://proxy.test:3128", "proxy.test", 3128, ""),
        ("http://proxy.test:3128/", "proxy.test", 3128, ""),
        ("proxy.test:3128", "proxy.test", 3128, ""),
        ("HTTP://proxy.test", "proxy.test", 80, ""),
        ("http://[::1]:3128", "::1", 3128, ""),
        ("http://me:s3cr3t@proxy.test:1", "proxy.test", 1, "me:s3cr3t"),
        ("http://me:s%40%3ac@proxy.test:1", "proxy.test", 1, "me:s@:c"),
        ("http://me:s/?#@c@proxy.test:1", "proxy.test", 1, "me:s/?#@c"),
        ("http://me@proxy.test:1", "proxy.test", 1, "me:"),
        ("http://me:%0d%0aX: y@proxy.test:1", "proxy.test", 1, "me:\r\nX: y"),
    ],
)
def test_what_a_proxy_is(text: str, host: str, port: int, user: str) -> None:
    proxy = split_proxy(text)
    assert (proxy.host, proxy.port) == (host, port)
    assert proxy.authorization.removeprefix("Basic ") == base64.b64encode(user.encode()).decode()
    assert proxy.lines.count("\n") == bool(user)
    assert SECRET not in repr(proxy) + str(proxy)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not the URL of a proxy"),
        ("http://me:s3cr3t@h:1/path", "not the URL of a proxy"),
        ("http://h:1?x", "not the URL of a proxy"),
        ("socks5://me:s3cr3t@h:1", "not by socks5://"),
        ("https://me:s3cr3t@h:1", "not by https://"),
        ("http://me:s3cr3t@h:99999", "port"),
        ("http://me:s3cr3t@h:0", "missing host or port"),
        ("http://me:s3cr3t@a_b%20c:1", "not a host name"),
        ("http://h\r\nX:1", "not the URL of a proxy"),
        ("http://" + "x" * 9000, "not the URL of a proxy"),
    ],
)
def test_what_is_no_proxy(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        split_proxy(text)
    assert SECRET not in str(caught.value)


def test_no_credentials_on_a_command_line() -> None:
    assert ProxyKind().parse("http://h:1") == "http://h:1"
    with pytest.raises(ValueError, match="--proxy-auth-file") as caught:
        ProxyKind().parse("http://me:s3cr3t@h:1")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "url", "expected"),
    [
        ({}, "http://e.test/", None),
        ({"http_proxy": "http://a:1"}, "http://e.test/", "a:1"),
        ({"HTTP_PROXY": "http://a:1"}, "http://e.test/", "a:1"),
        ({"http_proxy": "http://a:1", "HTTP_PROXY": "http://b:1"}, "http://e.test/", "a:1"),
        ({"http_proxy": "http://a:1"}, "https://e.test/", None),
        ({"HTTPS_PROXY": "http://a:1"}, "https://e.test/", "a:1"),
        ({"https_proxy": "a:1"}, "http://e.test/", None),
        ({"ALL_PROXY": "http://a:1"}, "https://e.test/", "a:1"),
        ({"all_proxy": "http://a:1", "http_proxy": "http://b:1"}, "http://e.test/", "b:1"),
        ({"all_proxy": "http://a:1", "no_proxy": "x.test, e.test"}, "http://e.test/", None),
        ({"all_proxy": "http://a:1", "NO_PROXY": "*"}, "http://e.test/", None),
        ({"all_proxy": "http://a:1", "http_proxy": ""}, "http://e.test/", "a:1"),
        # This machine, as Go's tools have it.
        ({"all_proxy": "http://a:1"}, "http://localhost:80/", None),
        ({"all_proxy": "http://a:1"}, "http://LOCALHOST.:80/", None),
        ({"all_proxy": "http://a:1"}, "http://127.9.9.9/", None),
        ({"all_proxy": "http://a:1"}, "https://[::1]/", None),
        ({"all_proxy": "http://a:1"}, "https://[::ffff:127.0.0.1]/", None),
        ({"all_proxy": "http://a:1"}, "http+unix://%2Frun%2Fa.sock/", None),
        # What is not used need not be right.
        ({"all_proxy": "socks5://a:1", "no_proxy": "e.test"}, "http://e.test/", None),
    ],
)
def test_the_environment(environ: dict[str, str], url: str, expected: str | None) -> None:
    found = from_environment(environ).of(origin(url))
    assert (found and str(found)) == expected


def test_a_proxy_that_cannot_be_used_is_said() -> None:
    proxies = from_environment({"HTTP_PROXY": "socks5://me:s3cr3t@a:1"})
    with pytest.raises(ValueError, match=r"http_proxy .* socks5") as caught:
        proxies.of(origin("http://e.test/"))
    assert SECRET not in str(caught.value)


def test_one_that_is_named_goes_before_the_environment() -> None:
    proxies = forced_on(split_proxy("http://a:1"), {"http_proxy": "b:1", "no_proxy": "10.0.0.0/8"})
    assert str(proxies.of(origin("http://127.0.0.1/"))) == "a:1"
    assert str(proxies.of(origin("https://e.test/"))) == "a:1"
    assert proxies.of(origin("http://10.1.2.3/")) is None
    assert proxies.of(origin("http+unix://%2Frun%2Fa.sock/")) is None
    assert Proxies().of(origin("http://e.test/")) is None


def test_what_is_told_in_confidence() -> None:
    given = {"http_proxy": "me:s3cr3t@h:1", "https_proxy": "socks5://x"}
    (secret,) = from_environment(given).secrets()
    assert base64.b64decode(secret.removeprefix("Basic ")) == b"me:s3cr3t"


@pytest.mark.parametrize(
    ("words", "host", "port", "expected"),
    [
        ("", "e.test", 80, False),
        ("e.test", "e.test", 80, True),
        ("E.Test", "e.tesT.", 80, True),
        ("e.test.", "e.test", 80, True),
        ("e.test", "a.e.test", 80, True),
        (".e.test", "a.e.test", 80, True),
        (".e.test", "e.test", 80, True),
        ("*.e.test", "a.e.test", 80, True),
        ("e.test", "ae.test", 80, False),
        ("e.test:81", "e.test", 80, False),
        ("e.test:80", "e.test", 80, True),
        ("a,e.test\t b", "e.test", 80, True),
        ("10.0.0.0/8", "10.255.0.1", 80, True),
        ("10.0.0.0/8", "11.0.0.1", 80, False),
        ("10.0.0.0/8", "::ffff:10.0.0.1", 80, True),
        ("10.0.0.0/8", "10.e.test", 80, False),
        ("10.0.0.1", "10.0.0.1", 80, True),
        ("10.0.0.1:81", "10.0.0.1", 80, False),
        ("0.1", "10.0.0.1", 80, False),
        ("fd00::/8", "fd12::1", 80, True),
        ("fd12::1", "fd12:0::1", 80, True),
        ("[fd12::1]:443", "fd12::1", 443, True),
        ("[fd12::1]:443", "fd12::1", 80, False),
        ("999.0.0.0/8,10.0.0.0/99,/", "10.0.0.1", 80, False),
        (".,*.,:80,[]", "e.test", 80, False),
        ("*", "e.test", 80, True),
    ],
)
def test_what_no_proxy_lists(words: str, host: str, port: int, *, expected: bool) -> None:
    assert Bypass(words).has(host, port) is expected
