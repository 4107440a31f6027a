"""One connection against a scripted nsqd: the handshake, its upgrades, and every way to end."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.clients import consumer_options
from tests.support.nsqd import PATIENCE_S
from tests.support.peer import Peer, frame, message, messages
from tests.support.raw import ERROR, RESPONSE

from nsqtools.client import connection as connection_module
from nsqtools.client.connection import Connection, connect
from nsqtools.client.memory import ConsumerMemory
from nsqtools.errors import (
    ConnectionFailed,
    HandshakeRefused,
    NsqToolsError,
    ProtocolError,
    ServerError,
)
from nsqtools.wire.compression import DECOMPRESS_BYTES_MAX, Codec, Deflate, Snappy
from nsqtools.wire.frames import HEARTBEAT, OTHER_SIZE_MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from tests.support.peer import PeerConnection

    from nsqtools.wire.frames import Oversized
    from nsqtools.wire.messages import Messages


class Recorder:
    """A receiver that keeps everything."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.responses: list[bytes] = []
        self.oversized: list[Oversized] = []
        self.errors: list[ServerError] = []
        self.lost: list[NsqToolsError] = []
        self._changed = asyncio.Event()

    def messages_received(self, connection: Connection, messages: Messages) -> None:
        self.bodies += messages.bodies
        self._changed.set()

    def oversized_received(self, connection: Connection, message: Oversized) -> None:
        self.oversized.append(message)
        self._changed.set()

    def response_received(self, connection: Connection, data: bytes) -> None:
        self.responses.append(data)
        self._changed.set()

    def error_received(self, connection: Connection, error: ServerError) -> None:
        self.errors.append(error)
        self._changed.set()

    def connection_lost(self, connection: Connection, cause: NsqToolsError) -> None:
        self.lost.append(cause)
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def conversation(
    script: Callable[[PeerConnection], Any] | None = None, /, **settings: str
) -> AsyncIterator[tuple[PeerConnection, Connection, Recorder]]:
    """A connection that has shaken hands, by the script of the peer."""
    recorder = Recorder()
    async with Peer() as peer, asyncio.TaskGroup() as group:
        connecting = group.create_task(dial(peer.address, recorder, **settings))
        accepted = await peer.accept()
        if script is None:
            await accepted.identify()
        else:
            await script(accepted)
        connection = await connecting
        yield accepted, connection, recorder
        connection.abort(ConnectionFailed(peer.address, "the test is over"))
        await connection.ended()


async def dial(address: str, recorder: Recorder, **settings: str) -> Connection:
    return await connect(address, consumer_options(**settings), recorder, ConsumerMemory().buffer)


async def failing(
    script: Callable[[PeerConnection], Any], expected: type[Exception], **settings: str
) -> NsqToolsError:
    """How the handshake fails by this script."""
    recorder = Recorder()
    async with Peer() as peer:
        connecting = asyncio.create_task(dial(peer.address, recorder, **settings))
        playing = asyncio.create_task(script(await peer.accept()))
        with pytest.raises(NsqToolsError) as caught:
            await connecting
        await playing
    assert type(caught.value) is expected
    assert not recorder.lost, "a connection that was never there cannot be lost"
    return caught.value


# The handshake


async def test_identify_says_who_we_are_and_what_we_want() -> None:
    settings = {
        "client_id": "me",
        "hostname": "me.example",
        "user_agent": "tool/1",
        "heartbeat_interval": "20s",
        "output_buffer_size": "-1",
        "output_buffer_timeout": "-1ns",
        "msg_timeout": "90s",
        "sample_rate": "7",
    }
    async with conversation(**settings) as (peer, connection, _):
        assert connection.is_open
        said = json.loads(peer.bodies[0])
    assert said["client_id"] == "me"
    assert said["hostname"] == "me.example"
    assert said["user_agent"] == "tool/1"
    assert said["feature_negotiation"] is True
    assert said["heartbeat_interval"] == 20_000
    assert said["output_buffer_size"] == -1
    assert said["output_buffer_timeout"] == -1
    assert said["msg_timeout"] == 90_000
    assert said["sample_rate"] == 7
    assert (said["tls_v1"], said["deflate"], said["snappy"]) == (False, False, False)


async def test_an_nsqd_that_negotiates_nothing_is_taken_with_its_defaults() -> None:
    async def old(peer: PeerConnection) -> None:
        await peer.magic()
        await peer.expect(b"IDENTIFY")
        peer.respond(b"OK")

    async with conversation(old) as (_, connection, _recorder):
        assert connection.reply.max_rdy_count == 2500
        assert not connection.reply.negotiated


async def test_heartbeats_are_answered_during_the_handshake_and_after_it() -> None:
    async def busy(peer: PeerConnection) -> None:
        await peer.magic()
        await peer.expect(b"IDENTIFY")
        peer.respond(b"_heartbeat_")
        peer.respond(b"OK")
        await peer.expect(b"NOP")

    async with conversation(busy) as (peer, _, recorder):
        peer.respond(b"_heartbeat_")
        await peer.expect(b"NOP")
        assert await peer.is_quiet()
        assert recorder.responses == []


async def test_auth_follows_identify() -> None:
    async def asks(peer: PeerConnection) -> None:
        await peer.identify(auth_required=True)
        await peer.expect(b"AUTH")
        peer.respond(b'{"identity":"x"}')

    async with conversation(asks, auth_secret="s3cret", auth_plaintext="true") as (
        peer,
        connection,
        _,
    ):
        assert connection.is_open
        assert peer.told == [b"IDENTIFY", b"AUTH"]
        assert peer.bodies[1] == b"s3cret"


async def test_an_nsqd_that_asks_for_a_secret_we_do_not_have_is_not_used() -> None:
    async def asks(peer: PeerConnection) -> None:
        await peer.identify(auth_required=True)
        assert await peer.rest() == []

    failure = await failing(asks, HandshakeRefused)
    assert "auth_secret" in str(failure)


async def test_a_secret_is_not_told_to_whoever_asks_for_it_in_the_clear() -> None:
    async def asks(peer: PeerConnection) -> None:
        await peer.identify(auth_required=True)
        assert await peer.rest() == []

    failure = await failing(asks, HandshakeRefused, auth_secret="s3cret")
    assert "--auth-plaintext" in str(failure)


async def test_a_refused_secret_is_told_in_the_words_of_nsqd() -> None:
    async def refuses(peer: PeerConnection) -> None:
        await peer.identify(auth_required=True)
        await peer.expect(b"AUTH")
        peer.refuse(b"E_UNAUTHORIZED AUTH failed")

    failure = await failing(refuses, ServerError, auth_secret="wrong", auth_plaintext="true")
    assert str(failure) == "E_UNAUTHORIZED AUTH failed"


async def test_a_refused_identify_is_told_in_the_words_of_nsqd() -> None:
    async def refuses(peer: PeerConnection) -> None:
        await peer.magic()
        await peer.expect(b"IDENTIFY")
        peer.refuse(b"E_BAD_BODY IDENTIFY msg timeout (1) is invalid")

    failure = await failing(refuses, ServerError)
    assert str(failure) == "E_BAD_BODY IDENTIFY msg timeout (1) is invalid"


@pytest.mark.parametrize(
    "answer",
    [
        frame(0, b"what?"),
        frame(0, b'{"max_rdy_count":0}'),
        frame(0, b'{"tls_v1":true}'),
        frame(7, b"OK"),
        b"\xff\xff\xff\xff\x00\x00\x00\x00",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
async def test_what_is_no_answer_to_identify_ends_the_handshake(answer: bytes) -> None:
    async def answers(peer: PeerConnection) -> None:
        await peer.magic()
        await peer.expect(b"IDENTIFY")
        peer.send(answer)
        await peer.rest()

    await failing(answers, ProtocolError)


async def test_an_nsqd_that_closes_in_the_handshake() -> None:
    async def closes(peer: PeerConnection) -> None:
        await peer.magic()
        peer.end()

    await failing(closes, ConnectionFailed)


async def test_an_nsqd_that_never_answers_is_given_up() -> None:
    async def silent(peer: PeerConnection) -> None:
        await peer.magic()
        assert await peer.rest() == [b"IDENTIFY"]

    failure = await failing(
        silent, ConnectionFailed, read_timeout="100ms", heartbeat_interval="50ms"
    )
    assert "no answer in time" in str(failure)


async def test_nobody_listens() -> None:
    async with Peer() as peer:
        address = peer.address
    with pytest.raises(ConnectionFailed, match=address):
        await dial(address, Recorder())


async def test_a_host_name_that_cannot_be_one_is_a_failed_connection() -> None:
    with pytest.raises(ConnectionFailed):
        await dial("a" * 70 + ":4150", Recorder())


# Upgrades


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=nsqd", "-keyout", str(key)]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def secured(certificate: tuple[Path, Path]) -> Callable[[PeerConnection], Any]:
    async def script(peer: PeerConnection) -> None:
        await peer.identify(tls_v1=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        await peer.start_tls(context)

    return script


async def test_the_secret_goes_over_tls_without_another_word(
    certificate: tuple[Path, Path],
) -> None:
    async def asks(peer: PeerConnection) -> None:
        await peer.identify(tls_v1=True, auth_required=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        await peer.start_tls(context)
        await peer.expect(b"AUTH")
        peer.respond(b'{"identity":"x"}')

    settings = {"tls_v1": "true", "tls_root_ca_file": str(certificate[0]), "auth_secret": "s3cret"}
    async with conversation(asks, **settings) as (peer, _, _):
        assert peer.bodies[1] == b"s3cret"


async def test_tls_with_a_certificate_that_we_trust(certificate: tuple[Path, Path]) -> None:
    trusted = str(certificate[0])
    async with conversation(secured(certificate), tls_v1="true", tls_root_ca_file=trusted) as (
        peer,
        connection,
        recorder,
    ):
        connection.send(b"RDY 1\n")
        await peer.expect(b"RDY 1")
        peer.send(messages(1, 2))
        await recorder.until(lambda: len(recorder.bodies) == 2)
        closing = asyncio.create_task(connection.close())
        assert await peer.rest() == []
        peer.end()
        await closing


async def test_tls_without_trust_has_to_be_asked_for(certificate: tuple[Path, Path]) -> None:
    async def script(peer: PeerConnection) -> None:
        with pytest.raises((ssl.SSLError, OSError)):
            await secured(certificate)(peer)

    failure = await failing(script, HandshakeRefused, tls_v1="true")
    assert "certificate" in str(failure).lower()
    async with conversation(
        secured(certificate), tls_v1="true", tls_insecure_skip_verify="true"
    ) as (_, connection, _recorder):
        assert connection.is_open


async def test_no_plain_connection_when_tls_was_asked_for() -> None:
    async def plain(peer: PeerConnection) -> None:
        await peer.identify(tls_v1=False)
        assert await peer.rest() == []

    failure = await failing(plain, HandshakeRefused, tls_v1="true")
    assert "TLS" in str(failure)


async def test_nothing_that_came_before_tls_is_taken_as_if_it_came_within() -> None:
    async def injected(peer: PeerConnection) -> None:
        await peer.magic()
        await peer.expect(b"IDENTIFY")
        peer.send(frame(0, b'{"tls_v1":true}') + frame(0, b"OK"))
        assert await peer.rest() == []

    failure = await failing(injected, ProtocolError, tls_v1="true")
    assert "TLS" in str(failure)


@pytest.mark.parametrize(("name", "codec"), [("deflate", Deflate), ("snappy", Snappy)])
async def test_compression(name: str, codec: type[Codec]) -> None:
    async def script(peer: PeerConnection) -> None:
        await peer.identify(**{name: True})
        # The first message comes in one piece with the OK: nothing of it may be left behind.
        peer.compress(codec(), also=message(1, b"first"))

    async with conversation(script, **{name: "true"}) as (peer, connection, recorder):
        body = b"much of the same " * 20_000
        peer.send(message(2, body))
        await recorder.until(lambda: len(recorder.bodies) == 2)
        assert recorder.bodies == [b"first", body]
        connection.send(b"FIN x\n")
        await peer.expect(b"FIN x")
        peer.respond(b"_heartbeat_")
        await peer.expect(b"NOP")


async def test_an_upgrade_that_is_not_confirmed_ends_the_handshake() -> None:
    async def script(peer: PeerConnection) -> None:
        await peer.identify(deflate=True)
        codec = Deflate()
        peer.send(codec.compress(frame(0, b"NO")))
        await peer.rest()

    failure = await failing(script, ProtocolError, deflate="true")
    assert "compression upgrade" in str(failure)


async def test_a_damaged_compressed_stream_ends_the_connection() -> None:
    async def script(peer: PeerConnection) -> None:
        await peer.identify(snappy=True)
        peer.compress(Snappy())

    async with conversation(script, snappy="true") as (peer, _, recorder):
        peer._writer.write(b"\x05no snappy at all")
        await recorder.until(lambda: recorder.lost)
        assert isinstance(recorder.lost[0], ProtocolError)


# While it lives


async def test_frames_arrive_whole_however_they_are_cut() -> None:
    async with conversation() as (peer, _, recorder):
        for byte in messages(1, 2) + frame(0, b"CLOSE_WAIT") + frame(1, b"E_FIN_FAILED FIN x"):
            peer.send(bytes([byte]))
            await asyncio.sleep(0)
        await recorder.until(lambda: recorder.errors)
        assert recorder.bodies == [b"body", b"body"]
        assert recorder.responses == [b"CLOSE_WAIT"]
        assert recorder.errors[0].code == "E_FIN_FAILED"
        assert not recorder.errors[0].fatal


async def test_silence_is_given_up() -> None:
    settings = {"read_timeout": "100ms", "heartbeat_interval": "50ms"}
    async with conversation(**settings) as (_, connection, recorder):
        await recorder.until(lambda: recorder.lost)
        assert "silent" in str(recorder.lost[0])
        assert not connection.is_open


async def test_heartbeats_keep_a_connection() -> None:
    settings = {"read_timeout": "200ms", "heartbeat_interval": "50ms"}
    async with conversation(**settings) as (peer, connection, recorder):
        for _ in range(8):
            peer.respond(b"_heartbeat_")
            await peer.expect(b"NOP")
            await asyncio.sleep(0.05)
        assert connection.is_open
        assert not recorder.lost


async def test_nsqd_hears_from_us_while_we_do_not_listen() -> None:
    settings = {"read_timeout": "1s", "heartbeat_interval": "500ms"}
    async with conversation(**settings) as (peer, connection, recorder):
        connection.pause_reading()
        peer.respond(b"_heartbeat_")
        await peer.expect(b"NOP", b"NOP")
        connection.resume_reading()
        async with asyncio.timeout(PATIENCE_S):
            while not await peer.is_quiet(0.1):
                await peer.expect(b"NOP")
        assert connection.is_open
        assert not recorder.lost


async def test_a_connection_that_was_not_read_for_too_long_is_given_up() -> None:
    """nsqd's write has run into its deadline by then: it would never send a message again."""
    settings = {"read_timeout": "1s", "heartbeat_interval": "50ms"}
    async with conversation(**settings) as (_, connection, recorder):
        connection.pause_reading()
        await recorder.until(lambda: recorder.lost)
        assert "could not be taken in time" in str(recorder.lost[0])


async def test_an_interval_left_to_nsqd_is_no_interval_of_nothing() -> None:
    async with conversation(heartbeat_interval="0s") as (peer, connection, _):
        connection.pause_reading()
        await peer.expect(b"NOP")
        assert await peer.is_quiet(0.1)


async def test_without_heartbeats_silence_means_nothing() -> None:
    settings = {"read_timeout": "100ms", "heartbeat_interval": "-1ns"}
    async with conversation(**settings) as (peer, connection, recorder):
        assert await peer.is_quiet(0.2)
        assert connection.is_open
        assert not recorder.lost


@pytest.mark.parametrize(
    "garbage",
    [b"\x00\x00\x00\x00\x00\x00\x00\x00", b"\x7f\xff\xff\xff\x00\x00\x00\x02", b"GET / H"],
)
async def test_garbage_ends_the_connection_once(garbage: bytes) -> None:
    async with conversation() as (peer, connection, recorder):
        peer.send(messages(1) + garbage + b"\x00" * 8)
        await recorder.until(lambda: recorder.lost)
        assert isinstance(recorder.lost[0], ProtocolError)
        connection.send(b"FIN x\n")
        await connection.drain()
        await connection.close()
    assert len(recorder.lost) == 1


async def test_a_slow_peer_is_waited_for_as_long_as_it_takes_bytes() -> None:
    async with conversation(write_timeout="200ms") as (peer, connection, recorder):
        size_bytes = 24 << 20
        connection.send(b"x" * size_bytes)
        draining = asyncio.create_task(connection.drain())
        taken = 0
        while taken < size_bytes // 2:
            taken += len(await peer.read_some())
            await asyncio.sleep(0.005)
        assert connection.is_open, "it took bytes all the time"
        while not draining.done():
            await peer.read_some()
        assert not recorder.lost


async def test_a_peer_that_takes_nothing_is_given_up_though_nobody_waits_for_it() -> None:
    """A consumer's FINs: it sends them and goes on."""
    async with conversation(write_timeout="100ms") as (_, connection, recorder):
        connection.send(b"x" * (32 << 20))
        await recorder.until(lambda: recorder.lost)
        assert "takes no data" in str(recorder.lost[0])


async def test_no_answer_to_sub() -> None:
    async with conversation(read_timeout="100ms", heartbeat_interval="50ms") as (_, connection, _r):
        with pytest.raises(ConnectionFailed, match="no answer to SUB in time"):
            await connection.command(b"SUB t c\n", "SUB")


async def test_an_error_right_behind_the_answer_to_sub_is_heard() -> None:
    async with conversation() as (peer, connection, recorder):
        peer.send(frame(0, b"OK") + frame(1, b"E_INVALID behind it"))
        assert await connection.command(b"SUB t c\n", "SUB") == b"OK"
        await recorder.until(lambda: recorder.errors)
        assert recorder.errors[0].description == "behind it"


async def test_an_nsqd_that_refuses_our_output_buffer_is_asked_for_its_own() -> None:
    async with Peer() as peer:
        connecting = asyncio.create_task(
            connect(peer.address, consumer_options(), Recorder(), ConsumerMemory().buffer)
        )
        first = await peer.accept()
        await first.magic()
        assert (await first.identify_body())["output_buffer_size"] == 65536
        first.refuse(b"E_BAD_BODY IDENTIFY output buffer size (65536) is invalid")
        second = await peer.accept()
        await second.magic()
        asked = await second.identify_body()
        assert (asked["output_buffer_size"], asked["output_buffer_timeout"]) == (0, 0)
        second.respond(b"OK")
        connection = await connecting
        assert connection.is_open
        connection.abort(ConnectionFailed("", "test"))


async def test_a_peer_that_takes_nothing_is_given_up() -> None:
    async with conversation(write_timeout="100ms") as (_, connection, recorder):
        connection.send(b"x" * (32 << 20))
        await connection.drain()
        await recorder.until(lambda: recorder.lost)
        assert "takes no data" in str(recorder.lost[0])


# The end


async def test_closing_lets_everything_arrive_first() -> None:
    async with conversation() as (peer, connection, recorder):
        # What we have not read must not reset the connection.
        peer.send(messages(*range(100)))
        connection.send(b"FIN x\n" * 50_000)
        closing = asyncio.create_task(connection.close())
        assert await peer.rest() == [b"FIN x"] * 50_000
        assert not closing.done()
        peer.end()
        await closing
        assert len(recorder.lost) == 1


async def test_what_comes_while_closing_is_taken_and_not_answered() -> None:
    async with conversation() as (peer, connection, recorder):
        closing = asyncio.create_task(connection.close())
        assert await peer.rest() == []
        peer.send(frame(RESPONSE, HEARTBEAT) + messages(1))
        await recorder.until(lambda: recorder.bodies or recorder.lost)
        assert (len(recorder.bodies), recorder.lost) == (1, [])
        assert not connection.is_open
        connection.send(b"TOUCH x\n")
        peer.end()
        await closing
        assert "nsqd closed the connection" in str(recorder.lost[0])


async def test_a_connection_that_closes_while_paused_does_not_answer_heartbeats() -> None:
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: failures.append(told))
    async with conversation(heartbeat_interval="1s") as (peer, connection, _):
        connection.pause_reading()
        closing = asyncio.create_task(connection.close())
        await peer.rest()
        await closing  # CLOSE_TIMEOUT_S: nothing is read that could end it sooner
    assert failures == []


async def test_closing_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "CLOSE_TIMEOUT_S", 0.05)
    async with conversation() as (peer, connection, _):
        await connection.close()
        await connection.ended()
        assert not connection.is_open
        assert await peer.rest() == []


async def test_cancelling_connect_leaves_no_connection() -> None:
    recorder = Recorder()
    async with Peer() as peer:
        connecting = asyncio.create_task(dial(peer.address, recorder))
        accepted = await peer.accept()
        await accepted.magic()
        await accepted.expect(b"IDENTIFY")
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await accepted.command()


# Programs run on uvloop where there is one, tests on the loop that Python has


def test_tls_on_uvloop(certificate: tuple[Path, Path]) -> None:
    on_uvloop(test_tls_with_a_certificate_that_we_trust(certificate))


@pytest.mark.parametrize(
    "conversation",
    [
        pytest.param(lambda: test_compression("deflate", Deflate), id="deflate"),
        pytest.param(lambda: test_compression("snappy", Snappy), id="snappy"),
        pytest.param(lambda: test_garbage_ends_the_connection_once(b"GET /"), id="garbage"),
        test_nobody_listens,
        test_a_host_name_that_cannot_be_one_is_a_failed_connection,
        test_an_nsqd_that_closes_in_the_handshake,
        test_frames_arrive_whole_however_they_are_cut,
        test_silence_is_given_up,
        test_a_peer_that_takes_nothing_is_given_up,
        test_closing_lets_everything_arrive_first,
        test_cancelling_connect_leaves_no_connection,
    ],
)
def test_the_same_on_uvloop(conversation: Callable[[], Coroutine[Any, Any, None]]) -> None:
    on_uvloop(conversation())


def on_uvloop(conversation: Coroutine[Any, Any, None]) -> None:
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(conversation)


@pytest.mark.parametrize("codec", [Deflate, Snappy])
async def test_what_a_codec_holds_waits_while_nothing_is_to_be_read(codec: type[Codec]) -> None:
    """A kilobyte opens to a megabyte: whoever pauses is not to get all of it."""

    class Pausing(Recorder):
        def messages_received(self, connection: Connection, messages: Messages) -> None:
            super().messages_received(connection, messages)
            connection.pause_reading()

    count, body = 20_000, b"x" * 1000
    flood = b"".join(message(number, body) for number in range(count))
    recorder = Pausing()
    name = codec.__name__.lower()
    async with Peer() as peer, asyncio.TaskGroup() as group:
        connecting = group.create_task(dial(peer.address, recorder, **{name: "true"}))
        accepted = await peer.accept()
        await accepted.identify(**{name: True})
        accepted.compress(codec())
        connection = await connecting
        accepted.send(flood)
        opened: list[int] = []
        while len(recorder.bodies) < count:
            await recorder.until(lambda: len(recorder.bodies) > sum(opened))
            opened.append(len(recorder.bodies) - sum(opened))
            await asyncio.sleep(0)  # a turn in which nothing may come
            assert len(recorder.bodies) == sum(opened)
            connection.resume_reading()
        assert recorder.bodies == [body] * count
        assert max(opened) * len(body) <= DECOMPRESS_BYTES_MAX
        connection.abort(ConnectionFailed(peer.address, "the test is over"))
        await connection.ended()


async def test_a_flood_leaves_others_their_turns() -> None:
    """What was read at once is taken in parts, and what else is on the loop comes between them."""
    turns = 0

    class Counting(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.turns: set[int] = set()

        def messages_received(self, connection: Connection, messages: Messages) -> None:
            super().messages_received(connection, messages)
            self.turns.add(turns)

    def turn() -> None:
        nonlocal turns
        turns += 1
        ticking[0] = asyncio.get_running_loop().call_soon(turn)

    count, body = 16_000, b"x" * 1000
    recorder = Counting()
    async with Peer() as peer, asyncio.TaskGroup() as group:
        connecting = group.create_task(dial(peer.address, recorder, deflate="true"))
        accepted = await peer.accept()
        await accepted.identify(deflate=True)
        accepted.compress(Deflate())
        connection = await connecting
        ticking = [asyncio.get_running_loop().call_soon(turn)]
        accepted.send(b"".join(message(number, body) for number in range(count)))
        await recorder.until(lambda: len(recorder.bodies) == count)
        ticking[0].cancel()
        assert len(recorder.turns) >= count * len(body) // DECOMPRESS_BYTES_MAX
        connection.abort(ConnectionFailed(peer.address, "the test is over"))
        await connection.ended()


@pytest.mark.parametrize("kind", [RESPONSE, ERROR])
async def test_a_frame_that_is_no_message_is_short(kind: int) -> None:
    async def boasts(peer: PeerConnection) -> None:
        await peer.magic()
        await peer.expect(b"IDENTIFY")
        peer.send(frame(kind, b"x" * OTHER_SIZE_MAX_BYTES))

    failure = await failing(boasts, ProtocolError)
    assert "out of range" in str(failure)
