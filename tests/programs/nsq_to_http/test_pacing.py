"""How fast, how many at once, and what is shown of it."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from aiohttp import web
from tests.programs.nsq_to_http.helpers import delivering, publish, stats, until_settled
from tests.support.clients import until
from tests.support.endpoints import Received, serving

from nsqtools.options import load
from nsqtools.programs.nsq_to_http.options import NsqToHttpOptions
from nsqtools.programs.nsq_to_http.run import run

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from tests.support.nsqd import Nsqd

BODIES = [b"%d" % number for number in range(200)]


async def test_a_rate_is_kept(nsqd: Nsqd) -> None:
    times: list[float] = []

    def answer(_: Received) -> web.Response:
        times.append(asyncio.get_running_loop().time())
        return web.Response()

    await publish(nsqd, *BODIES[:60])
    async with (
        serving(answer) as endpoint,
        delivering(nsqd, f"--post={endpoint.url()}", "--rate=100"),
    ):
        await until_settled(nsqd, 60)
    rate = (len(times) - 1) / (times[-1] - times[0])
    assert 60 < rate < 130, "100, and a little at once at the start"


async def test_an_adaptive_limit_keeps_an_endpoint_quick(nsqd: Nsqd) -> None:
    """Four at a time are quick; a hundred would each wait for the others."""
    workers = asyncio.Semaphore(4)

    async def answer(_: Received) -> web.Response:
        async with workers:
            await asyncio.sleep(0.005)
        return web.Response()

    await publish(nsqd, *BODIES, *BODIES)
    async with serving(answer) as endpoint:
        async with delivering(nsqd, f"--post={endpoint.url()}", "--concurrency=auto"):
            await until_settled(nsqd, 400)
        assert sorted(endpoint.bodies) == sorted([*BODIES, *BODIES])
        assert 4 <= endpoint.most_at_once <= 40


async def test_a_limit_holds_nothing_back_for_ever(nsqd: Nsqd) -> None:
    """One of two endpoints is asked too much again and again."""
    await publish(nsqd, *BODIES)
    async with serving() as one, serving(status=429) as two:
        flags = (f"--post={one.url()}", f"--post={two.url()}", "--concurrency=auto")
        async with delivering(nsqd, *flags, "--mode=round-robin"):
            await asyncio.sleep(0.3)
            two.status = 200
            await until_settled(nsqd, len(BODIES))


async def test_at_the_end_nothing_more_is_sent(nsqd: Nsqd) -> None:
    """What waits for its turn goes back to nsqd, whatever the rate would need for it."""
    async with serving() as endpoint:
        flags = (f"--post={endpoint.url()}", "--rate=5")
        async with delivering(nsqd, *flags):
            await publish(nsqd, *BODIES)
            await until(lambda: endpoint.received)
        sent = len(endpoint.received)
    assert sent < len(BODIES) // 2
    now = await stats(nsqd)
    assert now["depth"] + now["deferred_count"] + sent == len(BODIES)


async def test_requests_are_shown(nsqd: Nsqd, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(one: Received) -> web.Response:
        return web.Response(status=204 if one.body == b"1" else 429)

    async with serving(answer) as endpoint:
        async with delivering(nsqd, f"--post={endpoint.url('/x?key=1')}", "--print"):
            await publish(nsqd, b"1")
            await until_settled(nsqd, 1)
        (line,) = capsys.readouterr().out.splitlines()
    status, took, topic, message_id, url = line.split()
    assert (status, topic, url) == ("204", "t", endpoint.url("/x"))
    assert took.endswith("ms")
    assert len(message_id) == 16


async def test_nobody_has_to_read_what_is_shown(
    nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    async with serving() as endpoint, delivering(nsqd, f"--post={endpoint.url()}", "--print"):
        await publish(nsqd, b"1", b"2", b"3")
        await until_settled(nsqd, 3)


async def test_a_dry_run_shows_the_first_request_and_sends_nothing(
    nsqd: Nsqd, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "token").write_text("s3cr3t")
    await publish(nsqd, b"body \xff", b"second")
    async with serving() as endpoint:
        argv = [
            *("--topic=t", "--channel=deliver", f"--nsqd-tcp-address={nsqd.tcp_address}"),
            *(f"--post={endpoint.url('/{topic}')}", "--header=X-Api-Key: s3cr3t", "--dry-run"),
            "--header=X-Pass: s3cr3t too",
            f"--bearer-token-file={folder / 'token'}",
        ]
        assert await run(load(NsqToHttpOptions, "nsq_to_http", argv, {})) == 0
        assert endpoint.received == []
    shown = capsys.readouterr().out
    assert shown.startswith("POST /t HTTP/1.1\nHost: ")
    assert "X-Api-Key: ***\n" in shown
    assert "Authorization: ***\n" in shown
    assert "s3cr3t" not in shown
    assert shown.endswith("Content-Length: 6\n\nbody \ufffd\n")
    now = await stats(nsqd)
    assert (now["depth"], now["in_flight_count"]) == (2, 0)


async def test_a_dry_run_on_a_terminal_leaves_it_as_it_is(
    nsqd: Nsqd,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    await publish(nsqd, b"\x1b]0;title\x07 \x1b[31mred\tand\nmore")
    argv = ["--topic=t", f"--nsqd-tcp-address={nsqd.tcp_address}", "--post=http://h/", "--dry-run"]
    assert await run(load(NsqToHttpOptions, "nsq_to_http", argv, {})) == 0
    assert capsys.readouterr().out.endswith("\n\\x1b]0;title\\x07 \\x1b[31mred\tand\nmore\n")


async def test_a_dry_run_says_that_it_waits(nsqd: Nsqd, capsys: pytest.CaptureFixture[str]) -> None:
    await publish(nsqd, b"x")
    argv = ["--topic=t", f"--nsqd-tcp-address={nsqd.tcp_address}", "--post=http://h/", "--dry-run"]
    assert await run(load(NsqToHttpOptions, "nsq_to_http", argv, {})) == 0
    assert "a dry run waits for a message" in capsys.readouterr().err


async def test_a_dry_run_shows_what_a_batch_would_be_and_leaves_no_trace(
    nsqd: Nsqd, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    await publish(nsqd, b'{"n":1}')
    argv = [
        *("--topic=t", "--channel=deliver", f"--nsqd-tcp-address={nsqd.tcp_address}"),
        *("--post=http://127.0.0.1:1/", "--batch-size=10", "--batch-format=json"),
        *("--compress=gzip", f"--dead-letter-dir={folder / 'dead'}", "--dry-run"),
    ]
    assert await run(load(NsqToHttpOptions, "nsq_to_http", argv, {})) == 0
    shown = capsys.readouterr().out
    assert "Content-Encoding: gzip\n" in shown
    assert shown.endswith('\n[{"n":1}]\n(sent with the body compressed by gzip)\n')
    assert not (folder / "dead").exists()
