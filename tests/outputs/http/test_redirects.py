"""Where a redirect leads: the word of somebody who may mean us ill."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.endpoints import ask, read_request, saying

from nsqtools.outputs.http.pool import ClientOptions, Pool
from nsqtools.outputs.http.redirects import check_method, resolve
from nsqtools.outputs.http.request import HEADER, Header, Method, RequestMaker
from nsqtools.outputs.http.routed import LOCATION_BYTES_MAX
from nsqtools.outputs.http.url import Origin, Url, split_url

if TYPE_CHECKING:
    import asyncio

SECRET = "s3cr3t"
BASE = split_url("http://h.test:8080/a/b?q=1", {})
SECURE = split_url("https://h.test/a/b", {})


def shown(url: Url) -> str:
    return f"{'https' if url.origin.is_tls else 'http'}://{url.origin}{url.target}"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/new", "http://h.test:8080/new"),
        ("new", "http://h.test:8080/a/new"),
        ("../new?x=/y", "http://h.test:8080/new?x=/y"),
        ("../../../../new", "http://h.test:8080/new"),
        ("?x", "http://h.test:8080/a/b?x"),
        ("#part", "http://h.test:8080/a/b?q=1"),
        ("/new?a=%20%7Bid%7D#part", "http://h.test:8080/new?a=%20%7Bid%7D"),
        ("//other.test/new", "http://other.test:80/new"),
        ("http://other.test", "http://other.test:80/"),
        ("HTTPS://other.test:8443/x?y", "https://other.test:8443/x?y"),
        ("http://[::1]:1/", "http://[::1]:1/"),
        ("http://other.test/@x", "http://other.test:80/@x"),
        ("/x//evil.test", "http://h.test:8080/x//evil.test"),
        ("/x?u=http://evil.test", "http://h.test:8080/x?u=http://evil.test"),
    ],
)
def test_where_it_leads(location: str, expected: str) -> None:
    assert shown(resolve(location, BASE)) == expected


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("", "no Location"),
        ("/" + "x" * LOCATION_BYTES_MAX, "more than 8192 bytes"),
        ("/a b", "not one URL"),
        ("/a /b", "not one URL"),
        ("/a\r\nX: y", "not one URL"),
        ("/a\tb", "not one URL"),
        ("/a\x00", "not one URL"),
        ("/ü", "not one URL"),
        ("\\\\evil.test\\", "not one URL"),
        ("/\\evil.test", "not one URL"),
        ("http://h/{id}", "not one URL"),
        ("ftp://h.test/", "no http or https URL"),
        ("file:///etc/passwd", "no http or https URL"),
        ("http+unix://%2Frun%2Fx.sock/", "no http or https URL"),
        ("javascript:1", "no http or https URL"),
        ("http:/x", "not an http"),
        ("http:x", "not an http"),
        ("http:///x", "missing host"),
        ("http://", "missing host"),
        ("//", "missing host"),
        ("http://h.test:0/", "missing host or port"),
        ("http://h.test:99999/", "port"),
        ("http://h%00.test/", "not a host name"),
        ("http://[::1/", "brackets"),
        ("http://me:s3cr3t@h.test/", "credentials"),
        ("//me:s3cr3t@h.test/", "credentials"),
        ("http://h.test:1@evil.test/s3cr3t", "credentials"),
    ],
)
def test_where_nobody_goes(location: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        resolve(location, BASE)
    assert SECRET not in str(caught.value)


def test_never_from_https_to_http() -> None:
    assert resolve("//other.test/", SECURE).origin.is_tls
    assert resolve("https://other.test/", BASE).origin.is_tls
    for location in ("http://h.test/", "HTTP://other.test/", "http://h.test:443/"):
        with pytest.raises(ValueError, match="from https to http"):
            resolve(location, SECURE)


def test_the_same_place_in_other_letters() -> None:
    assert resolve("http://H.TEST:8080/x", BASE).origin == BASE.origin
    assert resolve("https://h.test:8080/x", BASE).origin != BASE.origin
    assert resolve("http://h.test:8081/x", BASE).origin != BASE.origin


def test_a_path_of_a_socket_and_a_name_that_is_none() -> None:
    base = split_url("http+unix://%2Frun%2Fa.sock/a/b", {})
    assert resolve("c", base) == Url(origin=base.origin, authority="localhost", target="/a/c")
    assert resolve("http://localhost/c", base).origin == Origin(
        is_tls=False, host="localhost", port=80
    )


@given(st.text(max_size=40) | st.text("/:?#[]@%.ahtps0\\ ", max_size=20).map("http:".__add__))
def test_whatever_it_says(location: str) -> None:
    for base in (BASE, SECURE):
        try:
            url = resolve(location, base)
        except ValueError:
            continue
        assert url.target[0] == "/"
        assert all("!" <= c <= "~" for c in url.target + url.authority)
        assert url.origin.is_tls or not base.origin.is_tls


@pytest.mark.parametrize(
    ("method", "status", "goes"),
    [
        *[("POST", status, status > 303) for status in (301, 302, 303, 307, 308)],
        *[("GET", status, True) for status in (301, 302, 303, 307, 308)],
    ],
)
def test_a_post_never_loses_its_body(method: Method, status: int, *, goes: bool) -> None:
    if goes:
        check_method(status, method)
        return
    with pytest.raises(ValueError, match=f"{status} makes a GET of a POST, without its body"):
        check_method(status, method)


def test_what_others_get_of_a_request() -> None:
    headers = [
        Header(name="User-Agent", value="us", is_public=True),
        Header(name="Content-Type", value="text/plain", is_public=True),
        Header(name="X-Id", value="{id}", is_public=True),
        HEADER.parse("Authorization: s3cr3t"),
        HEADER.parse("Cookie: s3cr3t"),
        HEADER.parse("content-type: text/s3cr3t"),
        HEADER.parse("Host: s3cr3t.test"),
    ]
    maker = RequestMaker(
        *("POST", "http://h.test/{topic}/{id}?k=s3cr3t", headers),
        fixed={"topic": "t", "channel": "c"},
        sign=lambda _: b"X-Sign: s3cr3t\r\n",
    )
    values = {"id": "17"}
    url = maker.url_of(maker.make(b"body", values))
    assert url.target == "/t/17?k=s3cr3t"
    elsewhere = resolve("//other.test/new", url)
    assert maker.redirected(elsewhere, b"body", values, None, is_elsewhere=True) == (
        b"POST /new HTTP/1.1\r\nHost: other.test\r\nUser-Agent: us\r\nContent-Type: text/plain\r\n"
        b"X-Id: 17\r\nContent-Length: 4\r\n\r\nbody"
    )
    own = maker.redirected(resolve("/new", url), b"body", values, None, is_elsewhere=False)
    assert own.startswith(b"POST /new HTTP/1.1\r\nHost: s3cr3t.test\r\n")
    assert own.count(b"s3cr3t") == 5


@pytest.mark.parametrize(
    ("head", "location"),
    [
        (b"Location: /a\r\n", "/a"),
        (b"LOCATION: /a\r\nRetry-After: 1\r\n", "/a"),
        (b"Location:\t /a \t\r\n", "/a"),
        (b"", ""),
        (b"Location: /a\r\nLocation: /b\r\n", "/a /b"),
        (b"Location: /" + b"x" * 20_000 + b"\r\n", "/" + "x" * LOCATION_BYTES_MAX),
        (b"Location: /\xc3\xbc\r\n", "/Ã¼"),
    ],
)
async def test_what_is_kept_of_a_location(head: bytes, location: str) -> None:
    assert (await locations(b"HTTP/1.1 307 T\r\n%bContent-Length: 0\r\n\r\n" % head))[0] == location


async def test_a_location_is_that_of_its_own_reply() -> None:
    early = b"HTTP/1.1 103 Hints\r\nLocation: /early\r\n\r\n"
    first = b"HTTP/1.1 307 T\r\nLocation: /one\r\nContent-Length: 0\r\n\r\n"
    second = (
        b"HTTP/1.1 307 T\r\nTransfer-Encoding: chunked\r\nTrailer: Location\r\n\r\n"
        b"0\r\nLocation: /late\r\n\r\n"
    )
    assert await locations(first, early + second) == ["/one", ""]


async def locations(*answers: bytes) -> list[str]:
    """Where the replies to requests on one connection lead."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await read_request(reader)
            writer.write(answer)

    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    async with saying(script) as address:
        options = ClientOptions(connect_timeout_s=5, request_timeout_s=5, keeps_location=True)
        pool = Pool(split_url(f"http://{address}", {}).origin, options)
        try:
            return [(await ask(pool, request)).location for _ in answers]
        finally:
            pool.close()
