"""A whole program under signals: what its log says and how it exits."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, sys
from dataclasses import dataclass
from nsqtools.cli.base import Program
from nsqtools.lifecycle import Lifecycle
from nsqtools.observe.log import configure
from nsqtools.options import TEXT, option

@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    drain: str = option(TEXT, default="short", help="how the drain is")

async def run(options):
    configure("info", "[sample] ")
    async with Lifecycle(60) as life:
        life.on_reload(lambda: print("reloaded", flush=True))
        print("ready", flush=True)
        await life.stopping.wait()
        print("stopping", flush=True)
        done = await life.drain(asyncio.sleep(0 if options.drain == "short" else 60))
    return 0 if done else 1

async def unguarded(options):
    print("ready", flush=True)
    await asyncio.sleep(60)
    return 0

name = "unguarded" if sys.argv[1:] == ["--drain=unguarded"] else "run"
Program(name="sample", headline="", summary="", options="__main__:Options",
        run=f"__main__:{name}", examples=()).main()
"""


def start(drain: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, f"--drain={drain}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def expect(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{word}\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_ends_in_order(number: signal.Signals) -> None:
    with start("short") as process:
        expect(process, "ready")
        process.send_signal(signal.SIGHUP)
        expect(process, "reloaded")
        process.send_signal(number)
        expect(process, "stopping")
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert [line.partition(": ")[2] for line in log.splitlines()] == [
        "reloading handlers=1",
        f"stopping reason={number.name} timeout_s=60",
    ]


@pytest.mark.slow
def test_a_second_signal_forces() -> None:
    with start("long") as process:
        expect(process, "ready")
        process.send_signal(signal.SIGTERM)
        expect(process, "stopping")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "WARNING: cut short what=drain reason=forced" in log


@pytest.mark.slow
def test_an_interrupt_outside_of_the_lifecycle_exits_with_130() -> None:
    with start("unguarded") as process:
        expect(process, "ready")
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 130
    assert log == "\nsample: interrupted\n"
