"""What comes with a published file: its manifest and a command, through the whole program."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from typing import TYPE_CHECKING

import pytest
from tests.archive.test_manifest import assert_fits
from tests.pipeline.helpers import archive_options, publish
from tests.support.nsqd import PATIENCE_S

from nsqtools.errors import OptionsError
from nsqtools.lifecycle import Lifecycle
from nsqtools.programs.nsq_to_file import run as program
from nsqtools.programs.nsq_to_file.run import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd

TEN = [b"message %d" % number for number in range(10)]
TELL = """
import json, os, sys
facts = {name: value for name, value in os.environ.items() if name.startswith("NSQ")}
with open(sys.argv[1], "a") as out:
    out.write(json.dumps([sys.argv[2], os.path.exists(sys.argv[2] + ".manifest.json"), facts]) + "\\n")
"""


@pytest.fixture(autouse=True)
def _no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        program, "Lifecycle", lambda timeout_s: Lifecycle(timeout_s, handle_signals=False)
    )


async def archive(nsqd: Nsqd, folder: Path, *flags: str) -> int:
    await publish(nsqd, *TEN)
    options = archive_options(
        folder,
        f"--nsqd-tcp-address={nsqd.tcp_address}",
        "--filename-format=<TOPIC>.<CHANNEL><REV>.log",
        "--max-messages=10",
        "--progress=never",
        *flags,
    )
    async with asyncio.timeout(PATIENCE_S):
        return await run(options)


async def test_a_manifest_and_a_command(
    nsqd: Nsqd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command sees file and manifest, and nothing of our settings; the end waits for it."""
    monkeypatch.setenv("NSQ_TO_FILE_AUTH_SECRET", "hush")
    told, folder = tmp_path / "told", tmp_path / "archive"
    command = shlex.join([sys.executable, "-c", TELL, str(told)])
    assert await archive(nsqd, folder, "--manifest", f"--on-publish={command}") == 0
    path = folder / "t.archive.log"
    assert assert_fits(path).records == 10
    (told_path, has_manifest, facts) = json.loads(told.read_text())
    assert (told_path, has_manifest) == (str(path), True)
    assert facts["NSQTOOLS_RECORDS"] == "10"
    assert "NSQ_TO_FILE_AUTH_SECRET" not in facts


async def test_a_command_that_hangs_costs_part_of_the_end(
    nsqd: Nsqd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is published and acknowledged: the run has ended in order."""
    folder = tmp_path / "archive"
    flags = ("--on-publish=sh -c 'sleep 1000'", "--shutdown-timeout=1s")
    assert await archive(nsqd, folder, *flags) == 0
    assert (folder / "t.archive.log").exists()
    told = capsys.readouterr().err
    assert "commands=0 failed_commands=0 unfinished_commands=1" in told
    assert told.count("the command for a finished file failed") == 1


def test_a_command_is_not_repeated_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="--on-publish") as refused:
        archive_options(tmp_path, "--nsqd-tcp-address=h:1", "--on-publish=curl 'secret")
    assert "secret" not in str(refused.value)
