"""`nsqtools NAME`, and the start of a program as a shell sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import nsqtools
from nsqtools import ending
from nsqtools.cli.main import PROGRAMS, SUITES, main, overview

# What `--version` must not wait for.
HEAVY = ("asyncio", "aiohttp", "uvloop", "zstandard", "rich", "logging.handlers", "click", "ssl")
PROBE = """
import json, sys
from nsqtools.cli.nsq_to_file import main
main(["--version"])
print(json.dumps(sorted(sys.modules)))
"""


def python(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **environ},
    )


def test_alone_it_lists_the_programs(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    shown = capsys.readouterr().out
    assert shown == overview()
    for name, program in PROGRAMS.items():
        assert f"{name} " in shown
        assert program.headline in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_suite_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    main(["archive"])
    shown = capsys.readouterr().out
    assert shown == SUITES["archive"].overview()
    for name, program in SUITES["archive"].commands.items():
        assert f"  {name} " in shown
        assert program.headline in shown
    assert max(map(len, shown.splitlines())) <= 80
    main(["archive", "--version"])
    assert capsys.readouterr().out == f"archive v{nsqtools.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["completion", "bash"], ["archive"], ["archive", "--version"]]
    + [["nsq_to_file", *flags] for flags in (["--help"], ["--version"], ["--version", "--gzip"])],
    ids=" ".join,
)
@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_what_cannot_be_shown_is_said_in_a_line(words: list[str], unbuffered: str) -> None:
    command = [sys.executable, "-m", "nsqtools", *words]
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        run = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, env=environ, check=False, timeout=30
        )
    told = b"nsqtools: write standard output: No space left on device\n"
    assert (run.returncode, run.stderr) == (5, told)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        run = subprocess.run(
            command, stdout=writing, stderr=subprocess.PIPE, env=environ, check=False, timeout=30
        )
    finally:
        os.close(writing)
    assert (run.returncode, run.stderr) == (5, b"")


def test_an_unknown_command_of_a_suite(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["archive", "verfy"])
    assert caught.value.code == 2
    assert "did you mean verify?" in capsys.readouterr().err


def test_wrong_flags_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["archive", "cat", "--since=yesterday", "--no-such-flag"])
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert "archive-cat: unknown flag --no-such-flag" in shown
    assert '"yesterday" for --since' in shown
    assert "name at least one file" in shown
    assert "hint: Read nsqtools archive cat --help." in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"nsqtools v{nsqtools.__version__}\n"


def test_an_unknown_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["nsq_to_fiel"])
    assert caught.value.code == 2
    assert "did you mean nsq_to_file?" in capsys.readouterr().err


def test_a_program_gets_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    main(["nsqd", "-version"])
    assert capsys.readouterr().out == f"nsqd v{nsqtools.__version__}\n"


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_wrong_flags_exit_with_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--no-such-flag"])
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert f"{name}: unknown flag --no-such-flag" in shown
    assert f"hint: Read {PROGRAMS[name].usage} --help." in shown


def test_nothing_is_left_armed_behind_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    armed: list[object] = []
    monkeypatch.setattr(ending, "arm", armed.append)
    with pytest.raises(SystemExit):
        main(["nsq_to_file", "--no-such-flag"])
    assert armed[0] is not None
    assert armed[1:] == [None]


@pytest.mark.slow
def test_version_answers_at_once() -> None:
    done = python("-c", PROBE)
    version, modules = done.stdout.splitlines()
    assert version == f"nsq_to_file v{nsqtools.__version__}"
    assert not set(HEAVY) & set(json.loads(modules))


@pytest.mark.slow
def test_options_are_read_without_what_a_run_needs() -> None:
    loaded = "nsqtools.cli.command, nsqtools.programs.nsq_to_file.options"
    probe = f"import sys; import {loaded}; print(*sys.modules)"
    modules = set(python("-c", probe).stdout.split())
    assert "click" in modules
    assert not {"asyncio", "aiohttp", "uvloop", "zstandard", "rich", "boto3"} & modules


@pytest.mark.slow
def test_as_a_module() -> None:
    done = python("-m", "nsqtools", "nsq_to_file", "--log-level=loud", NSQ_TO_FILE_TOPIC="t")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "nsq_to_file: --log-level is invalid: should be one of debug, info, warn, error, fatal",
        "nsq_to_file: --nsqd-tcp-address or --lookupd-http-address required.",
        "hint: Read nsq_to_file --help.",
    ]


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{sys.executable} -m nsqtools nsqd --help | head -1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "usage: nsqtools nsqd [flags]\n"
    assert done.stderr == ""
