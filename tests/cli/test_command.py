"""Programs as commands: exit codes, messages, help."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nsqtools import errors
from nsqtools.cli import (
    archive,
    demo,
    file_to_nsq,
    nsq_to_file,
    nsq_to_http,
    nsq_to_s3,
    nsqd,
    spool,
)
from nsqtools.cli.base import Program
from nsqtools.cli.command import EXIT_STATUS, GC_THRESHOLD, execute, resolve
from nsqtools.observe.lines import LINE_LENGTH_MAX, TRACEBACK_LINES_MAX
from nsqtools.observe.log import configure
from nsqtools.options import Int, load, option, options_of

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = [
    module.PROGRAM for module in (nsq_to_file, nsq_to_s3, nsq_to_http, file_to_nsq, nsqd, demo)
]
PROGRAMS += [*archive.SUITE.commands.values(), *spool.SUITE.commands.values()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    count: int = option(Int(minimum=0), default="0", help="a count")


class Scripted:
    """What the program under test does when it runs."""

    error: BaseException | None = None
    seen: list[int]
    loop = ""


async def run_sample(options: Sample) -> int:
    Scripted.seen.append(options.count)
    Scripted.loop = type(asyncio.get_running_loop()).__module__
    if Scripted.error is not None:
        raise Scripted.error
    return options.count


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """A program whose `run` is scripted; the collector's settings are given back."""
    threshold = gc.get_threshold()
    monkeypatch.setitem(sys.modules, "sample_program", sys.modules[__name__])
    monkeypatch.setattr(Scripted, "error", None)
    monkeypatch.setattr(Scripted, "seen", [], raising=False)
    yield Program(
        name="sample",
        headline="a sample",
        summary="Does as it is told.",
        options="sample_program:Sample",
        run="sample_program:run_sample",
        examples=(("run it", "sample --count=1"),),
        command="nsqtools sample",
    )
    gc.set_threshold(*threshold)
    gc.unfreeze()


def test_run_gets_its_options_and_gives_the_exit_code(program: Program) -> None:
    assert execute(program, ["--count=7"]) == 7
    assert Scripted.seen == [7]
    assert gc.get_threshold() == GC_THRESHOLD
    assert gc.get_freeze_count() > 0


def test_it_runs_on_uvloop(program: Program) -> None:
    pytest.importorskip("uvloop")
    execute(program, [])
    assert Scripted.loop == "uvloop"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.NsqToolsError("no", hint="Do this."), 1, "sample: no\nhint: Do this.\n"),
        (errors.ConnectionFailed("a:1", "refused"), 3, "sample: a:1: refused\n"),
        (errors.ProtocolError("E_INVALID", "why"), 3, "sample: E_INVALID why\n"),
        (errors.ArchiveError("bad"), 4, "sample: bad\n"),
        (
            errors.StorageError("open", "/x", OSError(28, "No space left on device")),
            5,
            "sample: open /x: No space left on device\n",
        ),
        (
            ExceptionGroup("tasks", [errors.ArchiveError("a"), errors.ArchiveError("a")]),
            4,
            "sample: a\n",
        ),
        (
            errors.ConnectionFailed("a:1", "\x1b[2J\nforged \u202e at http://me:hunter2@h/"),
            3,
            "sample: a:1: \\x1b[2J\\nforged \\u202e at http://me:***@h/\n",
        ),
        (KeyboardInterrupt(), 130, "\nsample: interrupted\n"),  # below the ^C of a terminal
    ],
)
def test_each_error_has_its_code_and_message(
    program: Program,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    text: str,
) -> None:
    Scripted.error = error
    assert execute(program, []) == code
    assert capsys.readouterr().err == text
    assert code in EXIT_STATUS


def test_a_bug_comes_with_its_traceback(
    program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    group = ExceptionGroup("tasks", [errors.ArchiveError("known"), ZeroDivisionError("odd")])
    Scripted.error = group
    assert execute(program, []) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("sample: known\n")
    assert "Traceback" in shown
    assert shown.endswith("sample: unexpected ZeroDivisionError: odd\n")


def test_a_traceback_forges_no_line(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    Scripted.error = ZeroDivisionError("\x1b[2J\n2026/01/31 INFO: forged\n" + "x\n" * 10_000)
    assert execute(program, []) == 1
    *shown, last = capsys.readouterr().err.splitlines()
    assert any("2026/01/31 INFO: forged" in line for line in shown)
    assert all(line.startswith("  ") and line.isprintable() for line in shown)
    assert len(shown) <= TRACEBACK_LINES_MAX + 1
    assert last.startswith("sample: unexpected ZeroDivisionError: \\x1b[2J\\n2026")
    assert len(last) <= LINE_LENGTH_MAX + 3


def test_errors_are_json_where_the_log_is(
    program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(logging.getLogger().handlers)
    try:
        configure("info", "", log_format="json")
        Scripted.error = ExceptionGroup("all", [errors.ArchiveError("known"), OSError("odd")])
        assert execute(program, []) == 1
    finally:
        logging.getLogger().handlers[:] = before
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    messages = [line["message"] for line in found]
    assert messages[0] == "sample: known"
    assert "Traceback" in messages[1]
    assert messages[-1] == "sample: unexpected OSError: odd"


def test_wrong_options_stop_before_anything_runs(
    program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(program, ["--count=x", "--cuont", "1", "y"]) == 2
    assert Scripted.seen == []
    assert capsys.readouterr().err.splitlines() == [
        "sample: unknown flag --cuont, did you mean --count?",
        "sample: unknown arguments: [y]",
        'sample: invalid value "x" for --count: should be a whole number',
        "hint: Read nsqtools sample --help.",
    ]


@pytest.mark.parametrize("flag", ["-h", "-help", "--help"])
def test_help_wins_over_mistakes(
    program: Program, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert execute(program, ["--count=x", flag]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("usage: nsqtools sample [flags]\n")
    assert shown.err == ""


def test_version_among_other_flags(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(program, ["--count=1", "-version"]) == 0
    assert capsys.readouterr().out.startswith("sample v")
    assert Scripted.seen == []


def test_the_environment_is_read(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMPLE_COUNT", "4")
    assert execute(program, []) == 4


def test_every_error_class_has_a_code_of_the_table() -> None:
    classes = [errors.NsqToolsError]
    for found in classes:
        classes += found.__subclasses__()
    assert len(classes) > 8
    assert {found.exit_code for found in classes} <= set(EXIT_STATUS)
    assert len(set(EXIT_STATUS.values())) == len(EXIT_STATUS)


def test_the_documented_codes_are_those_of_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    table = text.partition("## Exit codes")[2].partition("\n## ")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == set(
        EXIT_STATUS
    )


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_help_of_each_program(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(program, ["--help"]) == 0
    shown = capsys.readouterr().out
    for made in options_of(resolve(program.options)):
        if made.is_secret:
            assert made.variable(program.name) in shown
        elif not made.positional:
            assert f"--{made.flag}" in shown
    for code, meaning in EXIT_STATUS.items():
        assert f"{code:<4} {meaning}" in shown
    assert f"usage: {program.usage}" in shown
    # A word that is longer than a line is not broken: it may be copied.
    assert all(len(line) <= 100 or " " not in line.strip() for line in shown.splitlines())


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_the_examples_are_valid(program: Program) -> None:
    """Each example's flags are read as they stand, without running anything."""
    assert program.examples
    for _, command in program.examples:
        words = shlex.split(command.replace("\\\n", " "))
        argv = words[words.index(program.usage.split()[-1]) + 1 :]
        if "|" in argv or ">" in argv:
            argv = argv[: min(at for at, word in enumerate(argv) if word in "|>")]
        load(resolve(program.options), program.name, argv, {})
