"""Endpoints behind proxies, and proxies that do everything wrong."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import uvloop
from tests.support.endpoints import ask, read_request, saying, serving
from tests.support.proxies import proxying
from tests.support.tls import make_certificate, serving_as, trusting

from nsqtools.outputs.http.connection import Exchange, Reply
from nsqtools.outputs.http.pool import ClientOptions, Pool
from nsqtools.outputs.http.proxy import split_proxy
from nsqtools.outputs.http.tunnel import CONNECT_REPLY_BYTES_MAX
from nsqtools.outputs.http.url import Origin, split_url

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path

    MakePool = Callable[..., Pool]

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
ENDPOINT = Origin(is_tls=True, host="example.test", port=443)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder, "IP:127.0.0.1")
    return folder


@pytest.fixture
def make_pool(certificates: Path) -> Iterator[MakePool]:
    """Pools that end with the test."""
    made: list[Pool] = []

    def make(
        proxy: str,
        origin: Origin = ENDPOINT,
        tls: ssl.SSLContext | None = None,
        connect_timeout_s: float = 5.0,
    ) -> Pool:
        options = ClientOptions(
            connect_timeout_s=connect_timeout_s,
            request_timeout_s=5.0,
            tls=tls or trusting(certificates),
        )
        made.append(Pool(origin, options, split_proxy(proxy)))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


async def through_a_tunnel(certificates: Path, make_pool: MakePool) -> None:
    async with serving(tls=serving_as(certificates)) as endpoint, proxying("me:pw") as proxy:
        pool = make_pool(proxy.url("me:pw"), split_url(endpoint.url(), {}).origin)
        for _ in range(3):
            assert await ask(pool, REQUEST) == Reply(200)
        assert endpoint.bodies == [b"body"] * 3
        assert pool.opened == 1
        assert not pool.is_busy
        (head,) = proxy.heads
        assert head.startswith(f"CONNECT {endpoint.address} HTTP/1.1\r\n".encode())
        pool.close()


async def test_a_tunnel(certificates: Path, make_pool: MakePool) -> None:
    await through_a_tunnel(certificates, make_pool)


def test_a_tunnel_on_the_loop_of_the_programs(certificates: Path, make_pool: MakePool) -> None:
    uvloop.run(through_a_tunnel(certificates, make_pool))


async def test_the_certificate_of_the_endpoint_counts(
    make_pool: MakePool, certificates: Path, tmp_path: Path
) -> None:
    make_certificate(tmp_path, "IP:127.0.0.1")
    async with serving(tls=serving_as(tmp_path)) as endpoint, proxying() as proxy:
        reply = await ask(make_pool(proxy.url(), split_url(endpoint.url(), {}).origin), REQUEST)
    why = f"certificate refused: self-signed certificate through proxy {proxy.address}"
    assert reply == Reply(0, f"not connected: {why}")
    async with serving(tls=serving_as(certificates)) as endpoint, proxying() as proxy:
        port = int(endpoint.address.rpartition(":")[2])
        other = Origin(is_tls=True, host="localhost", port=port)
        reply = await ask(make_pool(proxy.url(), other), REQUEST)
    assert "certificate refused: Hostname mismatch" in reply.error
    assert endpoint.received == []


async def test_credentials_that_are_wrong(make_pool: MakePool) -> None:
    async with proxying("me:pw") as proxy:
        reply = await ask(make_pool(proxy.url("me:s3cr3t")), REQUEST)
    assert reply.status == 0
    assert f"proxy {proxy.address}: answered status 407 to CONNECT example.test:443" in reply.error


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ((b"HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\n",), "answered status 403"),
        ((b"HTTP/1.1 502 Bad\r\n", b"\r\n"), "answered status 502"),
        ((b"HTTP/1.1 100 Continue\r\n\r\n",), "answered status 100"),
        ((b"HTTP/1.1 2000 OK\r\n\r\n",), "not HTTP"),
        ((b"HTTP/1.1 \r\n\r\n",), "not HTTP"),
        ((b"HTTP/2 200 OK\r\n\r\n",), "not HTTP"),
        ((b"SSH-2.0-OpenSSH\r\n\r\n",), "not HTTP"),
        ((b"\x16\x03\x01" * 9, b"\r\n\r\n"), "not HTTP"),
        ((b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",), "spoke before it was asked"),
        ((b"",), "closed the connection without an answer"),
        ((b"HTTP/1.1 200 O",), "closed the connection without an answer"),
        ((b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * CONNECT_REPLY_BYTES_MAX,), "has more than"),
        ((b"x" * (CONNECT_REPLY_BYTES_MAX + 1),), "has more than"),
    ],
)
async def test_what_is_no_tunnel(
    make_pool: MakePool, answers: tuple[bytes, ...], error: str
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for answer in answers:
            writer.write(answer)
            await asyncio.sleep(0.01)

    async with saying(script) as address:
        reply = await ask(make_pool(address), REQUEST)
    assert reply.status == 0
    assert f"proxy {address}: " in reply.error
    assert error in reply.error


@pytest.mark.parametrize("then", [b"", b"no TLS at all, but text", b"\x15\x03\x03\x00\x02\x02\x28"])
async def test_a_tunnel_that_leads_to_no_tls(make_pool: MakePool, then: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await reader.read(1)
        writer.write(then)

    async with saying(script) as address:
        pool = make_pool(address)
        reply = await ask(pool, REQUEST)
        assert reply.status == 0
        assert reply.error.startswith("not connected: ")
        assert reply.error.endswith(f" through proxy {address}")
        await asyncio.sleep(0)
        assert not pool.is_busy


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_a_proxy_that_hangs_has_the_time_of_a_connection(
    make_pool: MakePool, answer: bytes
) -> None:
    gone = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await reader.read()
        gone.set()

    async with saying(script) as address:
        reply = await ask(make_pool(address, connect_timeout_s=0.2), REQUEST)
        assert reply == Reply(0, f"no connection within 0.2 s through proxy {address}")
        async with asyncio.timeout(5):
            await gone.wait()


@pytest.mark.parametrize("is_tls", [True, False])
async def test_nobody_there(make_pool: MakePool, *, is_tls: bool) -> None:
    async with saying(lambda *_: asyncio.sleep(0)) as address:
        pass
    origin = Origin(is_tls=is_tls, host="example.test", port=80)
    reply = await ask(make_pool(address, origin), REQUEST)
    assert reply.status == 0
    assert reply.error.startswith(f"not connected: proxy {address}: ")


async def test_what_the_proxy_answers_itself_is_told_to_be_its_own(make_pool: MakePool) -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 502 Bad\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n",
        b"",
    ]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answers:
            await read_request(reader)
            writer.write(answers.pop(0))

    async with saying(script) as address:
        pool = make_pool(address, Origin(is_tls=False, host="example.test", port=80))
        way = f"through proxy {address}"
        assert await ask(pool, REQUEST) == Reply(200)
        assert await ask(pool, REQUEST) == Reply(502, way)
        wrong = f"status 407: credentials are missing or wrong {way}"
        assert await ask(pool, REQUEST) == Reply(0, wrong)


async def test_closing_while_a_tunnel_is_made(make_pool: MakePool) -> None:
    came = asyncio.Event()

    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        came.set()
        await reader.read()

    async with saying(script) as address:
        pool = make_pool(address)
        replies: list[Reply] = []
        pool.send(Exchange(REQUEST, lambda _, reply: replies.append(reply)))
        await came.wait()
        assert pool.is_busy
        pool.close()
        await asyncio.sleep(0.05)
    assert replies == [Reply(0, "the connection was closed by us")]
    assert not pool.is_busy
