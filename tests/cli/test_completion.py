"""Completion: click's protocol in a subprocess, and a real bash where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nsqtools.cli.command import resolve
from nsqtools.cli.completion import SHELLS, script
from nsqtools.cli.main import PROGRAMS, SUITES
from nsqtools.cli.parameters import parameters_of
from nsqtools.options import options_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def complete(*words: str, name: str = "nsq_to_file", asked_by: str = "bash") -> list[str]:
    """What the program answers a shell for the last of these words; bash's answers begin with `plain,`
    and so on."""
    environ = {
        **os.environ,
        f"_{name}_COMPLETE".upper(): f"{asked_by}_complete",
        "COMP_WORDS": "\n".join((name, *words)),
        "COMP_CWORD": words[-1] if asked_by == "fish" else str(len(words)),
    }
    code = (
        "import sys; from nsqtools.cli import main, nsq_to_file, file_to_nsq as f; "
        + {
            "nsqtools": "main.main([])",
            "nsq_to_file": "nsq_to_file.main([])",
            "file_to_nsq": "f.main([])",
        }[name]
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env=environ,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--comp",), ["plain,--compress"]),
        (("-comp",), ["plain,-compress"]),
        (("--compress", ""), ["plain,none", "plain,gzip", "plain,zstd"]),
        (("-compress", "z"), ["plain,zstd"]),
        (("--compress", "="), ["plain,none", "plain,gzip", "plain,zstd"]),
        (("--compress", "=", "z"), ["plain,zstd"]),
        (("-gzip=false", "--no-such", "--log-level", "e"), ["plain,error"]),
        (("--config", ""), ["file,"]),
        (("--output-dir", "/t"), ["dir,/t"]),
        (("--topic", ""), []),
        (("--auth",), ["plain,--auth-plaintext"]),  # a secret is no flag
        (("--vers",), ["plain,--version"]),
    ],
)
def test_words_of_a_program(words: tuple[str, ...], found: list[str]) -> None:
    assert complete(*words) == found


def test_a_flag_and_its_value_in_one_word() -> None:
    assert complete("--compress=z") == ["plain,--compress=zstd"]
    assert complete("-compress=z", asked_by="zsh") == ["plain", "-compress=zstd", "_"]
    assert complete("--compress=z", asked_by="fish") == ["plain,--compress=zstd"]
    assert complete("--config=/et") == ["file,/et"]


def test_every_flag_is_offered_once() -> None:
    offered = complete("--")
    flags = {
        f"plain,--{made.flag}"
        for made in options_of(resolve(PROGRAMS["nsq_to_file"].options))
        if not made.is_secret
    }
    assert set(offered) == flags | {"plain,--config", "plain,--version", "plain,--help"}
    assert len(offered) == len(set(offered))
    assert complete("-") == offered


def test_words_that_are_files() -> None:
    assert complete("--topic", "t", "/var/lo", name="file_to_nsq") == ["file,/var/lo"]


def test_programs_and_their_flags_under_one_name() -> None:
    assert complete("nsq", name="nsqtools") == [
        "plain,nsq_to_file",
        "plain,nsq_to_s3",
        "plain,nsq_to_http",
        "plain,nsqd",
    ]
    assert complete("nsqd", "--data", name="nsqtools") == ["plain,--data-path"]
    assert complete("nsqd", "--data-path", "x", name="nsqtools") == ["dir,x"]
    assert complete("completion", "f", name="nsqtools") == ["plain,fish"]


def test_commands_of_archive_and_their_flags() -> None:
    assert complete("arch", name="nsqtools") == ["plain,archive"]
    assert complete("archive", "ver", name="nsqtools") == ["plain,verify"]
    assert complete("archive", "ls", "--js", name="nsqtools") == ["plain,--json"]
    assert complete("archive", "cat", "--format", "j", name="nsqtools") == ["plain,jsonl"]
    assert complete("archive", "cat", "/var/lo", name="nsqtools") == ["file,/var/lo"]
    for shell in ("zsh", "fish"):
        offered = complete("archive", "cat", "--sin", name="nsqtools", asked_by=shell)
        assert any("--since" in word for word in offered)


EVERY = PROGRAMS | {
    program.name: program for suite in SUITES.values() for program in suite.commands.values()
}


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_parameter_for_each_option(name: str) -> None:
    options = options_of(resolve(EVERY[name].options))
    named = {parameter.name for parameter in parameters_of(options)}
    assert named - {"config", "version", "help"} == {
        made.name for made in options if not made.is_secret
    }


@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_a_script_is_printed_for_every_command(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nsqtools", "completion", shell],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    for name in ("nsqtools", "nsq_to_file", "nsq_to_s3", "nsq_to_http", "file_to_nsq"):
        assert f"_{name.upper()}_COMPLETE={shell}_complete" in done.stdout
    assert "_NSQD_COMPLETE" not in done.stdout
    own = [PROGRAMS[name] for name in ("nsq_to_file", "nsq_to_s3", "nsq_to_http", "file_to_nsq")]
    assert script(shell, own) == done.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.stdout, text=True, timeout=30, check=True)


@pytest.mark.parametrize("words", [(), ("ksh",), ("bash", "zsh")])
def test_another_shell_is_refused(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nsqtools", "completion", *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("nsqtools: name one shell of bash, zsh, fish\nhint: ")


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("nsq_to_file --compress z", "zstd"),
        ("nsq_to_file --compress = z", "zstd"),  # how bash parts --compress=z
        ("nsq_to_file --output-d", "--output-dir"),
        ("nsqtools nsq_to_file --log-level f", "fatal"),
    ],
)
def test_in_a_real_bash(line: str, found: str, tmp_path: Path) -> None:
    for name in ("nsqtools", "nsq_to_file"):
        runner = tmp_path / name
        runner.write_text(
            f"#!{sys.executable}\nfrom nsqtools.cli.{MODULES[name]} import main\nmain()\n"
        )
        runner.chmod(0o755)
    words = line.split()
    program = f"""
        eval "$(nsqtools completion bash)"
        COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}
        function_of() {{ complete -p "$1" | sed 's/.*-F \\([^ ]*\\) .*/\\1/'; }}
        $(function_of {words[0]}) {words[0]} {words[-1]} {words[-2]}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.stdout.split() == [found]
    assert done.stderr == ""


MODULES = {"nsqtools": "main", "nsq_to_file": "nsq_to_file"}
