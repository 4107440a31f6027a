"""The programs that read object stores and write to them, against a hostile one: small, quiet, ended.

What is made of single answers of a store that fails stands in tests/stores.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest
from tests.programs.hostile.helpers import PEAK_MAX_BYTES, attacked, check_log, check_sound
from tests.support import hostile_store as attacks
from tests.support.hostile_store import endless, hostile_store, listing, whole
from tests.support.programs import PATIENCE_S
from tests.support.raw import RawClient
from tests.support.web import until_channel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.hostile_store import Answer
    from tests.support.nsqd import Nsqd

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("credentials")]
BLOCK = b"x" * attacks.BLOCK_BYTES
XML = b'<?xml version="1.0"?>'
BOMB = (
    XML
    + b'<!DOCTYPE a [<!ENTITY a "'
    + b"x" * 1_000_000
    + b'">]><ListBucketResult><Name>'
    + b"&a;" * 1000
    + b"</Name></ListBucketResult>"
)
READING: dict[str, Sequence[str]] = {
    "ls": ("archive", "ls"),
    "cat": ("archive", "cat"),
    "verify": ("archive", "verify"),
    "file_to_nsq": ("file_to_nsq", "--topic=t", "--nsqd-tcp-address=127.0.0.1:1"),
}
RAW_KEY = "..%2F..%2Fetc%2F%1B%5B2J%1B%5D0%3Bowned%07%0D%0A2026%2F01%2F31%20forged%00.log"

# What the store says to a list, to a HEAD and to a GET; and the word for it.
ATTACKS: dict[str, tuple[dict[str, Answer], str]] = {
    "XML without end": (
        {"GET": endless("200 OK", XML + b"<ListBucketResult><Name>", BLOCK)},
        "more than 16 MiB",
    ),
    "elements without end": ({"GET": endless("200 OK", XML, b"<a>" * 10_000)}, "50000 tags"),
    "an error without end": (
        {"GET": endless("500 Error", XML + b"<Error><Code>", BLOCK)},
        "more than 16 MiB",
    ),
    "a document type": ({"GET": whole("200 OK", BOMB)}, "a document type"),
    "UTF-16": ({"GET": whole("200 OK", BOMB.decode().encode("utf-16"))}, "a document type"),
    "a token that comes again": (
        {"GET": listing(("a.log", 5), token="same")},
        "the same page of the list again and again",
    ),
    "sizes that are none": ({"GET": listing(("a.log", "many"))}, "s3://bkt"),
    "terminal escapes in an error": (
        {
            "GET": whole(
                "403 Forbidden",
                "<Error><Code>Access\u202eDenied</Code><Message>\u009b2J 2026/01/31 &#10;2026/01/31"
                "</Message></Error>".encode(),
            )
        },
        "s3://bkt",
    ),
    "what is larger than it was listed": (
        {
            "GET": listing(("a.log", 1000)),
            "HEAD": whole("200 OK", b"", 'ETag: "e"', size_bytes=1000),
            "GET /bkt/a.log": endless(
                "206 Partial", b"one\n", BLOCK, "Content-Range: bytes 0-999/1000", 'ETag: "e"'
            ),
        },
        "more came than was asked for",
    ),
    "all where a range was asked for": (
        {
            "GET": listing(("a.log", 10_000_000)),
            "HEAD": whole("200 OK", b"", 'ETag: "e"', size_bytes=10_000_000),
            "GET /bkt/a.log": endless("200 OK", b"one\n", BLOCK, 'ETag: "e"'),
        },
        "the store gives no ranges",
    ),
    "what was listed and is not there": (
        {
            "GET": listing(("a.log", 10**18)),
            "HEAD": whole("200 OK", b"", size_bytes=10**18),
            "GET /bkt/a.log": whole("416 No", b"<Error><Code>InvalidRange</Code></Error>"),
        },
        "InvalidRange",
    ),
    "keys that lead elsewhere": (
        {
            "GET": listing((RAW_KEY, 1000)),
            "GET /bkt/..": whole("403 Forbidden", b"<Error><Code>AccessDenied</Code></Error>"),
        },
        "\\x1b[2J",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("command", READING)
async def test_reading_survives(command: str, attack: str) -> None:
    answers, word = ATTACKS[attack]
    answers = {"HEAD": whole("404 Not", b""), **answers}
    async with (
        hostile_store(answers) as url,
        attacked(*READING[command], f"--endpoint-url={url}", "s3://bkt/") as tool,
    ):
        assert await tool.end(None) not in (0, None), tool.told
    check_log(tool)
    assert word in tool.told


@pytest.mark.parametrize("command", READING)
async def test_a_list_without_end_ends_with_sigterm(command: str) -> None:
    asked: list[str] = []
    answers: dict[str, Answer] = {"GET": attacks.Pages()}
    async with (
        hostile_store(answers, asked) as url,
        attacked(*READING[command], f"--endpoint-url={url}", "s3://bkt/") as tool,
    ):
        async with asyncio.timeout(PATIENCE_S):
            while len(asked) < 20:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.05)
        assert tool.peak_bytes() < PEAK_MAX_BYTES
        assert await tool.end(signal.SIGTERM) is not None
    check_log(tool)


@pytest.mark.parametrize("command", READING)
async def test_an_answer_byte_by_byte_ends_with_sigterm(command: str) -> None:
    asked: list[str] = []
    answers = {"GET": endless("200 OK", b"<", b" ")}
    async with (
        hostile_store(answers, asked, pause_s=0.05) as url,
        attacked(*READING[command], f"--endpoint-url={url}", "s3://bkt/") as tool,
    ):
        async with asyncio.timeout(PATIENCE_S):
            while not asked:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.05)
        assert await tool.end(signal.SIGTERM) is not None
    check_log(tool)


async def test_an_answer_byte_by_byte_has_its_time() -> None:
    answers = {"GET": endless("200 OK", b"<", b" ")}
    async with (
        hostile_store(answers, pause_s=0.05) as url,
        attacked(
            *READING["ls"], f"--endpoint-url={url}", "--store-timeout=100ms", "s3://bkt/"
        ) as tool,
    ):
        assert await tool.end(None) not in (0, None)
    assert "no answer in time" in tool.told


# What the store says to what writes: a look, an upload, and the look behind it.
WRITING: dict[str, tuple[dict[str, Answer], str]] = {
    "answers without end": (
        {"PUT": endless("200 OK", XML, BLOCK), "HEAD": whole("404 Not", b"")},
        "more than 16 MiB",
    ),
    "errors without end": (
        {"PUT": endless("500 Error", XML + b"<Error><Code>", BLOCK), "HEAD": whole("404 Not", b"")},
        "more than 16 MiB",
    ),
    "ETags that lie": (
        {"PUT": whole("200 OK", b"", 'ETag: "00"'), "HEAD": whole("404 Not", b"")},
        "s3://bkt",
    ),
    "metadata that are huge": (
        {
            "PUT": whole("200 OK", b"", 'ETag: "00"'),
            "HEAD": whole("200 OK", b"", *[f"x-amz-meta-{n}: {'y' * 6000}" for n in range(90)]),
            "GET": whole("404 Not", b"<Error><Code>NoSuchKey</Code></Error>"),
        },
        "s3://bkt",
    ),
    "more headers than there can be": (
        {"PUT": whole("200 OK", b"", *["X: y"] * 100_000), "HEAD": whole("404 Not", b"")},
        "s3://bkt",
    ),
    "no answer": ({"PUT": (), "HEAD": (), "GET": ()}, "no answer in time"),
}
OTHERS: dict[str, Answer] = {"POST": whole("500 Error", b""), "GET": whole("500 Error", b"")}


TEN = [b"message %d" % number for number in range(10)]


@pytest.mark.parametrize("attack", WRITING)
async def test_writing_survives_and_keeps_its_files(
    attack: str, nsqd: Nsqd, tmp_path: Path
) -> None:
    answers, word = WRITING[attack]
    spool = tmp_path / "spool"
    async with RawClient(nsqd.tcp_address) as client:
        await client.publish("t", *TEN)
    async with hostile_store(OTHERS | answers) as url:
        where = [f"--endpoint-url={url}", "--store-timeout=500ms"]
        flags = ["--topic=t", "--channel=c", f"--nsqd-tcp-address={nsqd.tcp_address}"]
        flags += ["--bucket=bkt", f"--spool-dir={spool}", "--rotate-interval=100ms"]
        async with attacked("nsq_to_s3", *flags, *where, "--shutdown-timeout=2s") as tool:
            await until_channel(nsqd, "t", "c", message_count=10, depth=0, in_flight_count=0)
            await tool.says(word)
            await check_sound(tool)
        kept = sorted(spool.glob("*.part"))
        assert kept
        async with attacked("spool", "upload", *where, str(spool)) as tool:
            assert await tool.end(None) not in (0, None)
        check_log(tool)
        # A store that has something under each name has room for nothing.
        assert word in tool.told or "no free one among" in tool.told
    assert sorted(spool.glob("*.part")) == kept
