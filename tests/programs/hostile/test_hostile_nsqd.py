"""The programs against a hostile nsqd: each stays small, says what it did, and ends when it is told to.

What is told are words of ours with what the stranger said, escaped, on one line and cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

import pytest
from tests.programs.hostile.helpers import (
    CONSUMING,
    attacked,
    check_log,
    check_sound,
    consuming,
)
from tests.support import hostile as attacks
from tests.support.hostile import hostile, many, message_block
from tests.support.peer import frame
from tests.support.programs import Program
from tests.support.raw import ERROR, RESPONSE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.support.hostile import Script

pytestmark = pytest.mark.usefixtures("credentials")


def heartbeat_block() -> bytes:
    return many(frame(RESPONSE, b"_heartbeat_"))


# What the nsqd does, the flags it needs, and the word for it.
ATTACKS: dict[str, tuple[Script, Sequence[str], str]] = {
    "empty messages beyond RDY": (
        attacks.flood_of_messages(b""),
        (),
        "far more messages than it was asked for",
    ),
    "messages beyond RDY": (
        attacks.flood_of_messages(b"x" * 200),
        (),
        "far more messages than it was asked for",
    ),
    "a deflate bomb": (
        attacks.bomb("deflate"),
        ("--consumer-opt=deflate",),
        "far more messages than it was asked for",
    ),
    "a snappy bomb": (
        attacks.bomb("snappy"),
        ("--consumer-opt=snappy",),
        "far more messages than it was asked for",
    ),
    "an answer to IDENTIFY of 63 MB": (
        attacks.identify_answer(b'{"a":[' + b"[]," * (21 << 20) + b"[]]}"),
        (),
        "out of range 4-65536",
    ),
    "frames in place of an answer to SUB": (
        attacks.frames_instead_of_an_answer(many(frame(RESPONSE, b"hello"))),
        (),
        "SUB was answered with",
    ),
    "messages in place of an answer to SUB": (
        attacks.frames_instead_of_an_answer(message_block(b"")),
        (),
        "messages before RDY",
    ),
    "no answer to SUB": (
        attacks.silence_after_sub,
        ("--consumer-opt=read_timeout,500ms", "--consumer-opt=heartbeat_interval,500ms"),
        "no answer to SUB in time",
    ),
    "heartbeats whose answers nobody reads": (
        attacks.heartbeats_unread(heartbeat_block()),
        (),
        "heartbeats without end",
    ),
    "heartbeats": (attacks.after_sub(heartbeat_block()), (), "heartbeats without end"),
    "responses": (
        attacks.after_sub(many(frame(RESPONSE, b"what"))),
        (),
        "responses without end",
    ),
    "errors": (
        attacks.after_sub(attacks.error_block(fatal=False)),
        (),
        "errors without end",
    ),
    "fatal errors": (attacks.after_sub(attacks.error_block(fatal=True)), (), "connection lost"),
    "an error of 30 MB": (
        attacks.after_sub(frame(ERROR, b"E_INVALID " + b"\x1b" * (30 << 20))),
        (),
        "out of range 4-65536",
    ),
}


def on_nsqd(address: str) -> tuple[str, str]:
    return "--topic=t", f"--nsqd-tcp-address={address}"


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", CONSUMING)
async def test_a_consuming_program_survives(name: str, attack: str, tmp_path: Path) -> None:
    script, flags, word = ATTACKS[attack]
    async with (
        hostile(script) as address,
        consuming(name, tmp_path, *on_nsqd(address), *flags) as tool,
    ):
        await tool.says(word)
        await check_sound(tool)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONSUMING)
async def test_large_messages_beyond_rdy_wait_in_the_socket(name: str, tmp_path: Path) -> None:
    flood = attacks.flood_of_messages(b"x" * 1_000_000)
    async with hostile(flood) as address, consuming(name, tmp_path, *on_nsqd(address)) as tool:
        await tool.says("subscribed")
        await asyncio.sleep(2.0)  # of a flood
        await check_sound(tool)


@contextlib.asynccontextmanager
async def replaying(address: str, folder: Path, *flags: str) -> AsyncIterator[Program]:
    """file_to_nsq on this nsqd."""
    source = folder / "source.log"
    source.write_bytes(b"one\ntwo\n")
    where = [*on_nsqd(address), "--shutdown-timeout=2s"]
    async with attacked("file_to_nsq", *where, *flags, str(source)) as tool:
        yield tool


PUBLISHING: dict[str, tuple[Script, Sequence[str], str]] = {
    "an answer to IDENTIFY of 63 MB": (
        attacks.identify_answer(b'{"a":[' + b"[]," * (21 << 20) + b"[]]}"),
        (),
        "out of range 4-65536",
    ),
    "heartbeats": (
        attacks.frames_instead_of_an_answer(heartbeat_block()),
        (),
        "heartbeats without end",
    ),
    "messages": (
        attacks.frames_instead_of_an_answer(message_block(b"")),
        (),
        "unexpected messages",
    ),
    "no answer": (attacks.silence_after_sub, (), "connected"),
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", PUBLISHING)
async def test_file_to_nsq_survives(attack: str, tmp_path: Path) -> None:
    script, flags, word = PUBLISHING[attack]
    async with hostile(script) as address, replaying(address, tmp_path, *flags) as tool:
        await tool.says(word)
        await check_sound(tool)


async def test_the_last_word_of_file_to_nsq_is_escaped(tmp_path: Path) -> None:
    async def refuses(nsqd: attacks.Attacker) -> None:
        await nsqd.identify()
        await nsqd.command()
        nsqd.refuse(b"E_BAD_TOPIC " + attacks.TERMINAL.encode() * 500)
        await nsqd.listen()

    async with hostile(refuses) as address, replaying(address, tmp_path) as tool:
        assert await tool.end(None) == 3
        check_log(tool)
        assert tool.log[-1].startswith("file_to_nsq: E_BAD_TOPIC \\x1b[2J")


@pytest.mark.parametrize("is_allowed", [False, True])
@pytest.mark.parametrize("name", ["nsq_to_file", "file_to_nsq"])
async def test_the_secret_is_told_in_the_clear_only_where_that_is_asked_for(
    name: str, is_allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{name.upper()}_AUTH_SECRET", "hunter2")
    secrets: list[bytes] = []
    flags = ["--auth-plaintext"] if is_allowed else []
    async with (
        hostile(attacks.asks_for_auth(secrets)) as address,
        (
            consuming(name, tmp_path, *on_nsqd(address), *flags)
            if name == "nsq_to_file"
            else replaying(address, tmp_path, *flags)
        ) as tool,
    ):
        if not is_allowed:
            await tool.says("use tls_v1, or --auth-plaintext")
        else:
            while not secrets:  # noqa: ASYNC110 - the script has no event
                await asyncio.sleep(0.01)
        await tool.end(signal.SIGTERM)
        assert "hunter2" not in tool.told
    assert secrets[:1] == [b"hunter2"] * is_allowed


@pytest.mark.parametrize("name", ["nsq_to_file", "file_to_nsq"])
async def test_the_secret_is_not_taken_from_the_command_line(name: str, tmp_path: Path) -> None:
    setting = "consumer" if name == "nsq_to_file" else "producer"
    async with Program(name) as tool:
        await tool.start(f"--{setting}-opt=auth_secret,hunter2", "--topic=t", str(tmp_path))
        assert await tool.end(None) == 2
        assert f"set {name.upper()}_AUTH_SECRET, or auth_secret in the file" in tool.told
        assert "hunter2" not in tool.told
