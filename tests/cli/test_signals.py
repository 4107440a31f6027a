"""A whole program under signals: what its log says and how it exits."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import asyncio, sys, threading
from dataclasses import dataclass
from nsqtools import lifecycle
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
        done = await life.drain(asyncio.sleep(60 if options.drain == "long" else 0))
    return 0 if done else 1

async def unguarded(options):
    print("ready", flush=True)
    await asyncio.sleep(60)
    return 0

async def hanging(options):
    configure("info", "[sample] ")
    lifecycle.HARD_END_S = 0.5
    async with Lifecycle(60) as life:
        threading.Thread(target=threading.Event().wait, name="stuck-fsync").start()
        asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
        print("ready", flush=True)
        await life.stopping.wait()
        print("stopping", flush=True)
        await life.forced.wait()
    return 0

if sys.argv[1:] == ["--drain=early"]:
    import importlib, time
    import_module = importlib.import_module
    def slow(name):
        print("ready", flush=True)
        time.sleep(0.5)
        importlib.import_module = import_module
        return import_module(name)
    importlib.import_module = slow
name = {"unguarded": "unguarded", "hanging": "hanging"}.get(sys.argv[1].partition("=")[2], "run")
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


@pytest.mark.slow
def test_a_signal_during_the_imports_ends_in_order() -> None:
    with start("early") as process:
        expect(process, "ready")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        out, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out == "ready\nstopping\n"
    assert "stopping reason=SIGTERM" in log


@pytest.mark.slow
def test_two_signals_during_the_imports_end_at_once() -> None:
    with start("early") as process:
        expect(process, "ready")
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)  # the same signal twice at once is one
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")


@pytest.mark.slow
def test_no_thread_holds_a_run_that_was_forced_to_end() -> None:
    with start("hanging") as process:
        expect(process, "ready")
        process.send_signal(signal.SIGTERM)
        expect(process, "stopping")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 130
    last = log.splitlines()[-1]
    assert last.startswith("sample: ended at once, not waiting for ")
    assert "stuck-fsync" in last
    assert log.count("ended at once") == 1
