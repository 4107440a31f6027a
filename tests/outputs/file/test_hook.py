"""The command for each published file: what it is told, and that nothing it does costs the archive."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.archive.helpers import START_NS, batch_of, claimed, spec, unfinished_file
from tests.support.clients import until
from tests.support.nsqd import PATIENCE_S

from nsqtools.archive.rotation import RotationPolicy
from nsqtools.options.kinds import OutOfRange
from nsqtools.options.system import COMMAND
from nsqtools.outputs.contract import DONE
from nsqtools.outputs.file import hook as module
from nsqtools.outputs.file.hook import PublishedFile, PublishHook
from nsqtools.outputs.file.leftovers import Leftovers
from nsqtools.outputs.file.output import FileOutput
from nsqtools.outputs.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Mapping

ENVIRON = {"PATH": "/usr/bin:/bin", "NSQ_TO_FILE_AUTH_SECRET": "hush", "NOTIFY_SOCKET": "/run/x"}
TELL = """
import json, os, sys
with open(sys.argv[1], "a") as out:
    out.write(json.dumps([sys.argv[2:], dict(os.environ)]) + "\\n")
"""
FILE = PublishedFile(
    path="/archive/t-000000.log",
    topic="t",
    channel="c",
    host="h",
    record_format="lines",
    compression="none",
    records=3,
    stored_bytes=30,
    first_ts_ns=1,
    last_ts_ns=None,
)


def python(text: str, *words: object) -> tuple[str, ...]:
    return (sys.executable, "-c", text, *map(str, words))


def hook_of(
    *command: str, timeout_s: float = PATIENCE_S, environ: Mapping[str, str] | None = None
) -> PublishHook:
    return PublishHook(
        command,
        timeout_s=timeout_s,
        secret_prefix="NSQ_TO_FILE_",
        environ=ENVIRON if environ is None else environ,
    )


async def outcome_of(hook: PublishHook, file: PublishedFile = FILE) -> bool:
    done: list[bool] = []
    hook.published(file, done.append)
    await hook.idle(file.topic, PATIENCE_S)
    (went_well,) = done
    return went_well


async def test_is_told_the_path_and_the_facts(tmp_path: Path) -> None:
    told = tmp_path / "told"
    assert await outcome_of(hook_of(*python(TELL, told)))
    (words, environ) = json.loads(told.read_text())
    assert words == [FILE.path]
    assert {name: value for name, value in environ.items() if name.startswith("NSQTOOLS_")} == {
        "NSQTOOLS_PATH": FILE.path,
        "NSQTOOLS_TOPIC": "t",
        "NSQTOOLS_CHANNEL": "c",
        "NSQTOOLS_HOST": "h",
        "NSQTOOLS_FORMAT": "lines",
        "NSQTOOLS_COMPRESSION": "none",
        "NSQTOOLS_RECORDS": "3",
        "NSQTOOLS_STORED_BYTES": "30",
        "NSQTOOLS_FIRST_TS": "1",
        "NSQTOOLS_LAST_TS": "",
    }
    assert environ["PATH"] == ENVIRON["PATH"]
    assert not environ.keys() & {"NSQ_TO_FILE_AUTH_SECRET", "NOTIFY_SOCKET"}


async def test_no_shell_reads_the_path(tmp_path: Path) -> None:
    """A name may hold whatever a file name may."""
    told = tmp_path / "told"
    path = f"/a b/$(touch {tmp_path}/bad);'.log"
    file = PublishedFile(**{**{n: getattr(FILE, n) for n in FILE.__slots__}, "path": path})
    assert await outcome_of(hook_of(*python(TELL, told)), file)
    assert json.loads(told.read_text())[0] == [path]
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("/no/such/program",), "No such file or directory"),
        (("/",), "Permission denied"),
        (python("raise SystemExit(3)"), "it exited with 3"),
        (python("import os; os.abort()"), "ended by signal 6"),
    ],
)
async def test_what_fails_is_told(
    command: tuple[str, ...], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert not await outcome_of(hook_of(*command))
    assert reason in caplog.text
    assert "path=/archive/t-000000.log" in caplog.text


async def test_what_hangs_is_ended(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it has started; and killed when it will not end."""
    monkeypatch.setattr(module, "KILL_AFTER_S", 0.1)
    deaf = "trap '' TERM; while :; do sleep 0.05; done"
    assert not await outcome_of(hook_of("/bin/sh", "-c", deaf, timeout_s=0.1))
    assert "ended after 0.1 s" in caplog.text


async def test_so_many_at_a_time_and_so_many_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "WAITING_MAX", 3)
    gate = tmp_path / "gate"
    hook = hook_of("/bin/sh", "-c", f"until [ -e {gate} ]; do sleep 0.02; done")
    done: list[bool] = []
    before = threading.active_count()  # of what ran before in this process
    for _ in range(20):
        hook.published(FILE, done.append)
    # Those that run, those that wait, and none of the others.
    assert len(done) >= 20 - module.COMMANDS_MAX - 3
    assert not any(done)
    assert "too many wait already" in caplog.text
    assert threading.active_count() < before + 10
    gate.touch()
    await hook.idle("t", PATIENCE_S)
    assert len(done) == 20
    assert sum(done) in (3, 4, 5)


async def test_the_end_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    """Then what runs is ended, and what waits is not begun."""
    began = tmp_path / "began"
    hook = hook_of("/bin/sh", "-c", f"echo >> {began}; exec sleep 100")
    done: list[bool] = []
    for _ in range(5):
        hook.published(FILE, done.append)
    while not began.exists() or len(began.read_text()) < module.COMMANDS_MAX:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert await hook.idle("t", 0.05) == 5
    assert await hook.idle("another", PATIENCE_S) == 0
    hook.close()
    assert done == [False] * 5, "all of it is told before the process ends"
    assert await hook.idle("t", PATIENCE_S) == 0
    assert len(began.read_text()) == module.COMMANDS_MAX
    hook.published(FILE, done.append)
    assert done == [False] * 6


async def test_an_output_runs_it_for_each_file_and_counts(tmp_path: Path) -> None:
    told = tmp_path / "told"
    archive = tmp_path / "archive"
    archive.mkdir()
    once = "import os, sys; sys.exit(os.environ['NSQTOOLS_PATH'].endswith('1.log'))"
    command = python(f"{TELL}\n{once}", told)
    workers, hook = Workers(), hook_of(*command)
    wanted = spec(archive, rotation=RotationPolicy(rotate_records=1))
    output = FileOutput(wanted, workers, sync_interval_s=1.0, hook=hook)
    for number in range(3):
        assert await output.deliver([batch_of([b"%d" % number], number)]) == DONE
    await output.close()
    await until(lambda: output.counts()["commands"] == 3)  # it is counted in another thread
    paths = sorted(json.loads(line)[0][0] for line in told.read_text().splitlines())
    assert paths == sorted(map(str, archive.glob("*.log")))
    assert (output.counts()["commands"], output.counts()["failed_commands"]) == (3, 1)
    workers.close()


async def test_files_of_a_run_that_did_not_end_count_too(tmp_path: Path) -> None:
    told = tmp_path / "told"
    data, _ = unfinished_file(tmp_path, "framed", "none", [[batch_of([b"one"])]])
    claimed(tmp_path, data, "framed", "none")
    workers, hook = Workers(), hook_of(*python(TELL, told))
    await Leftovers(tmp_path, workers, hook=hook).finish("topic")
    await hook.idle("topic", PATIENCE_S)
    words, environ = json.loads(told.read_text())
    assert words == [str(tmp_path / "topic-000000.log")]
    assert environ["NSQTOOLS_RECORDS"] == "1"
    assert environ["NSQTOOLS_STORED_BYTES"] == str(Path(words[0]).stat().st_size)
    assert environ["NSQTOOLS_FIRST_TS"] == str(START_NS)
    workers.close()


def test_the_option_reads_a_command() -> None:
    command = ("sh", "-c", 'gzip "$1"', "hook")
    assert COMMAND.parse(shlex.join(command)) == command
    assert COMMAND.render(command) == "***"
    for text in ("", "  ", "''", "'open", "a\0b"):
        with pytest.raises(ValueError, match=r"command|NUL"):
            COMMAND.parse(text)
    with pytest.raises(OutOfRange, match="256 words"):
        COMMAND.parse("a " * 257)
