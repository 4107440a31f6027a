"""The client, against servers that do everything wrong that a server can do."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.support.clients import until
from tests.support.endpoints import ask, read_request, saying, serving
from tests.support.tls import make_certificate

from nsqtools.outputs.http import pool as pool_module
from nsqtools.outputs.http.connection import REPLY_BYTES_MAX, Exchange, Reply
from nsqtools.outputs.http.pool import ClientOptions, Pool
from nsqtools.outputs.http.url import Origin, split_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    MakePool = Callable[..., Pool]

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TIMEOUT_S = 0.3


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    """Pools that end with the test."""
    made: list[Pool] = []

    def make(address: str, tls: ssl.SSLContext | None = None, server_name: str = "") -> Pool:
        scheme = "https" if tls else "http"
        url = address if "://" in address else f"{scheme}://{address}"
        options = ClientOptions(
            connect_timeout_s=5.0,
            request_timeout_s=TIMEOUT_S,
            tls=tls,
            server_name=server_name,
        )
        made.append(Pool(split_url(url, {}).origin, options))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


async def replies_to(make_pool: MakePool, *answers: bytes, ends: bool = True) -> Reply:
    """What a request gets from a server that sends these bytes, a little apart."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for answer in answers:
            writer.write(answer)
            await writer.drain()
            await asyncio.sleep(0.01)
        if not ends:
            await asyncio.sleep(10)

    async with saying(script) as address:
        return await ask(make_pool(address), REQUEST)


@pytest.mark.parametrize(
    ("answers", "status", "error"),
    [
        ((OK,), 200, ""),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), 204, ""),
        ((b"HTTP/1.1 200 OK\r\n", b"Content-Length: 2\r\n\r", b"\no", b"k"), 200, ""),
        (
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", b"0\r\n\r\n"),
            200,
            "",
        ),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", OK), 200, ""),
        ((b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK,), 200, ""),
        ((b"HTTP/1.0 200 OK\r\n\r\nuntil the end",), 200, ""),
        ((b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",), 503, ""),
        ((b"",), 0, "connection closed without a reply"),
        ((b"HTTP/1.1 200 O",), 0, "connection closed in the middle of a reply"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut",), 0, "in the middle of a reply"),
        (
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ncut",),
            0,
            "in the middle of a reply",
        ),
        ((b"SSH-2.0-OpenSSH_9.2\r\n",), 0, "a reply that is not HTTP"),
        ((b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",), 0, "a reply that is not HTTP"),
        ((b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",), 0, "a reply that is not HTTP"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",), 0, "a reply that is not HTTP"),
        (
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",),
            0,
            "a reply that is not HTTP",
        ),
        (
            (b"HTTP/1.1 101 Up\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",),
            0,
            "switched to another protocol",
        ),
    ],
)
async def test_a_reply_counts_when_it_came_whole(
    make_pool: MakePool, answers: tuple[bytes, ...], status: int, error: str
) -> None:
    reply = await replies_to(make_pool, *answers)
    assert reply.status == status, reply
    assert error in reply.error


async def test_what_an_error_says_is_kept_for_a_part(make_pool: MakePool) -> None:
    body = b"no such thing " * 100
    head = b"HTTP/1.1 400 Bad\r\nRetry-After: 7\r\nContent-Length: %d\r\n\r\n" % len(body)
    reply = await replies_to(make_pool, head + body)
    assert (reply.status, reply.retry_after) == (400, "7")
    assert reply.excerpt == body


async def test_a_reply_without_an_end_costs_its_connection_only(make_pool: MakePool) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    more = chunks * (REPLY_BYTES_MAX // 4096 + 2)
    assert (await replies_to(make_pool, head, more, ends=False)).status == 200


async def test_a_head_without_an_end_is_given_up(make_pool: MakePool) -> None:
    more = b"X-More: more and more of it\r\n" * (REPLY_BYTES_MAX // 20)
    reply = await replies_to(make_pool, b"HTTP/1.1 200 OK\r\n", more, ends=False)
    assert reply.status == 0
    assert "head of a reply" in reply.error


async def test_an_endpoint_that_hangs_is_given_up(make_pool: MakePool) -> None:
    began_s = asyncio.get_running_loop().time()
    reply = await replies_to(make_pool, b"HTTP/1.1 200 OK\r\n", ends=False)
    assert reply == Reply(0, f"no reply within {TIMEOUT_S:g} s")
    assert TIMEOUT_S <= asyncio.get_running_loop().time() - began_s < 5


async def test_connections_are_kept_alive(make_pool: MakePool) -> None:
    async with serving() as endpoint:
        pool = make_pool(endpoint.address)
        for _ in range(5):
            assert (await ask(pool, REQUEST)).status == 200
        assert pool.opened == len(endpoint.connections) == 1


async def test_one_that_is_asked_to_close_is_not_used_again(make_pool: MakePool) -> None:
    def close(_: object) -> web.Response:
        return web.Response(headers={"Connection": "close"})

    async with serving(close) as endpoint:
        pool = make_pool(endpoint.address)
        for _ in range(3):
            assert (await ask(pool, REQUEST)).status == 200
        assert pool.opened == 3


async def test_a_connection_that_was_closed_under_us_is_no_failure(make_pool: MakePool) -> None:
    """The endpoint closes without a word when the second request comes; the third finds it closed."""
    requests: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        writer.write(OK)
        await reader.read(1)

    async with saying(script) as address:
        pool = make_pool(address)
        for _ in range(3):
            assert (await ask(pool, REQUEST)).status == 200
        assert (len(requests), pool.opened) == (3, 3)


async def test_a_connection_that_speaks_when_not_asked_is_closed(make_pool: MakePool) -> None:
    """Its reply would be taken for that of the next request."""
    spoke = asyncio.Event()
    requests: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        writer.write(OK)
        await asyncio.sleep(0.02)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        spoke.set()
        requests.append(await read_request(reader))  # it would go on
        writer.write(OK)
        await reader.read(1)

    async with saying(script) as address:
        pool = make_pool(address)
        assert (await ask(pool, REQUEST)).status == 200
        await spoke.wait()
        await asyncio.sleep(0.02)
        assert (await ask(pool, REQUEST)).status == 200
        assert len(requests) == pool.opened == 2, "it is not used again"


async def test_a_reply_before_the_request_was_sent_is_known(make_pool: MakePool) -> None:
    body = b"x" * (32 << 20)  # more than any socket buffers
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    for answer, status in ((OK, 200), (b"HTTP/1.1 413 Large\r\nContent-Length: 0\r\n\r\n", 413)):

        async def script(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes = answer
        ) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            await asyncio.sleep(10)

        async with saying(script) as address:
            reply = await ask(make_pool(address), request)
            assert (reply.status, reply.is_early) == (status, True)


async def test_a_second_reply_to_one_request_ends_the_connection(make_pool: MakePool) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK + b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
        await reader.read(1)

    async with saying(script) as address:
        pool = make_pool(address)
        assert (await ask(pool, REQUEST)).status == 200
        assert (await ask(pool, REQUEST)).status == 200
        assert pool.opened == 2


async def test_a_reset_is_a_failure_with_its_reason(make_pool: MakePool) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.transport.abort()

    async with saying(script) as address:
        reply = await ask(make_pool(address), REQUEST)
    assert reply.status == 0
    assert "connection closed without a reply" in reply.error


async def test_nobody_there_is_a_failure_with_its_reason(make_pool: MakePool) -> None:
    async with saying(lambda *_: asyncio.sleep(0)) as address:
        pass
    reply = await ask(make_pool(address), REQUEST)
    assert (reply.status, "onnect" in reply.error) == (0, True), reply


async def test_a_fault_in_connecting_is_a_failure_with_its_reason(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is: a host name is looked up in a thread, and the system may give none."""

    async def no_thread(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", no_thread)
    async with asyncio.timeout(5.0):
        reply = await ask(make_pool("localhost:80"), REQUEST)
    assert reply == Reply(0, "not connected: can't start new thread")


async def test_an_old_connection_is_replaced(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name may mean another machine by now."""
    async with serving() as endpoint:
        pool = make_pool(endpoint.address)
        await ask(pool, REQUEST)
        await ask(pool, REQUEST)
        assert pool.opened == 1
        monkeypatch.setattr(pool_module, "CONNECTION_AGE_MAX_S", -1.0)
        await ask(pool, REQUEST)
        assert pool.opened == 2


async def test_connections_that_nobody_wants_are_closed(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one topic does not need any more another may want."""
    monkeypatch.setattr(pool_module, "IDLE_MAX_S", 0.1)
    async with serving() as endpoint:
        pool = make_pool(endpoint.address)
        await asyncio.gather(*(ask(pool, REQUEST) for _ in range(5)))
        assert len(pool._connections) == len(pool._idle) == pool.opened == 5
        await until(lambda: not pool._connections)
        assert (await ask(pool, REQUEST)).status == 200
        assert (pool.opened, pool._idle) == (6, list(pool._connections))


async def test_closing_fails_what_is_on_its_way(make_pool: MakePool) -> None:
    came = asyncio.Event()

    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await read_request(reader)
        came.set()
        await asyncio.sleep(10)

    async with saying(script) as address:
        pool = make_pool(address)
        replies: list[Reply] = []
        pool.send(Exchange(REQUEST, lambda _, reply: replies.append(reply)))
        await came.wait()
        pool.close()
    assert replies == [Reply(0, "the connection was closed by us")]


async def test_a_unix_socket(make_pool: MakePool, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    async with serving(socket_path=str(path)) as endpoint:
        pool = make_pool(f"http+unix://{str(path).replace('/', '%2F')}/x")
        assert pool.origin == Origin(is_tls=False, host="", port=0, socket_path=str(path))
        assert (await ask(pool, REQUEST)).status == 200
        assert endpoint.bodies == [b"body"]


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cert.pem` and `key.pem` of example.test, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder, "DNS:example.test")
    return folder


@pytest.fixture
async def tls_endpoint(certificates: Path) -> AsyncIterator[str]:
    """It wants a client certificate that this authority has signed."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    context.load_verify_locations(certificates / "cert.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    async with serving(tls=context) as endpoint:
        yield endpoint.address


def trusting(certificates: Path, *, client: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates / "cert.pem")
    if client:
        context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    return context


async def test_tls_with_both_certificates(
    make_pool: MakePool, tls_endpoint: str, certificates: Path
) -> None:
    pool = make_pool(tls_endpoint, trusting(certificates, client=True), "example.test")
    for _ in range(3):
        assert (await ask(pool, REQUEST)).status == 200
    assert pool.opened == 1


@pytest.mark.parametrize("name", ["other.test", ""])
async def test_tls_with_a_wrong_name_is_refused(
    make_pool: MakePool, tls_endpoint: str, certificates: Path, name: str
) -> None:
    reply = await ask(make_pool(tls_endpoint, trusting(certificates, client=True), name), REQUEST)
    assert reply.status == 0
    assert "certificate" in reply.error


async def test_tls_of_an_unknown_authority_is_refused(
    make_pool: MakePool, tls_endpoint: str
) -> None:
    pool = make_pool(tls_endpoint, ssl.create_default_context(), "example.test")
    reply = await ask(pool, REQUEST)
    assert reply.status == 0
    assert "self-signed certificate" in reply.error


async def test_tls_without_a_client_certificate_is_refused(
    make_pool: MakePool, tls_endpoint: str, certificates: Path
) -> None:
    pool = make_pool(tls_endpoint, trusting(certificates, client=False), "example.test")
    assert (await ask(pool, REQUEST)).status == 0
