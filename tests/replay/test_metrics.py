"""The status of a replay that is under way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families
from tests.replay.support import embedded
from tests.support.web import WebAnswer, encode_request, parse_answer

from nsqtools.options import load
from nsqtools.replay.options import FileToNsqOptions
from nsqtools.replay.run import run

if TYPE_CHECKING:
    from pathlib import Path

DEADLINE_S = 30.0


async def ask(path: Path, target: str) -> WebAnswer:
    """One answer of the socket at `path`, as soon as there is one."""
    while not path.exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(encode_request("GET", target))
    answer = await reader.read()
    writer.close()
    return parse_answer(answer)


async def test_what_was_read_and_published_is_shown_while_it_runs(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(b"one\n\n" + b"two\n" * 99)
    socket = tmp_path / "status"
    async with embedded(tmp_path / "broker") as broker, asyncio.timeout(DEADLINE_S):
        words = [
            *("--topic=t", f"--nsqd-tcp-address={broker.tcp_address}", "--rate=10"),
            *(f"--status-address={socket}", str(lines)),
        ]
        running = asyncio.create_task(run(load(FileToNsqOptions, "file_to_nsq", words, {})))
        values: dict[str, float] = {}
        while values.get("nsqtools_replay_published_messages_total", 0) < 1:
            text = (await ask(socket, "/metrics")).body.decode()
            values = {
                "|".join((sample.name, *sample.labels.values())): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
            await asyncio.sleep(0.01)
        assert values["nsqtools_replay_read_records_total"] == 101
        assert values["nsqtools_replay_dropped_messages_total|empty"] == 1
        assert values["nsqtools_replay_published_bytes_total"] >= 3
        assert (await ask(socket, "/ready")).status == 200
        assert (await ask(socket, "/status")).json["program"] == "file_to_nsq"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert not socket.exists()
