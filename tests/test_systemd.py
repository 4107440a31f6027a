"""The units in systemd/: what they run, with which options, and what systemd itself says of them.

Nothing is started here; systemd-analyze only reads.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nsqtools.cli.command import EXIT_STATUS, PERMANENT, resolve
from nsqtools.cli.main import PROGRAMS
from nsqtools.options import load

FOLDER = Path(__file__).parent.parent / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
PYTHON = "/opt/nsqtools/bin/python"
# systemd's measure from 0 (closed) to 100; what is left is what a network program needs.
EXPOSURE_MAX = 25

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")


def values(unit: Path, key: str) -> list[str]:
    lines = unit.read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


def variables(text: str) -> dict[str, str]:
    pairs = [line.partition("=") for line in text.splitlines() if line and line[0] != "#"]
    return {name: value for name, _, value in pairs}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_what_does_not_mend_itself_is_not_tried_again(unit: Path) -> None:
    (codes,) = values(unit, "RestartPreventExitStatus")
    assert {int(code) for code in codes.split()} == PERMANENT
    assert set(EXIT_STATUS) > PERMANENT
    assert values(unit, "Restart") == ["on-failure"]
    assert values(unit, "StartLimitIntervalSec") == ["0"]


def options_with(unit: Path, given: dict[str, str]) -> Any:
    """Of what the unit runs, with its variables, those of the file to begin with, and these."""
    (command,) = values(unit, "ExecStart")
    words = shlex.split(expanded(command))
    assert words[:3] == [PYTHON, "-m", "nsqtools"]
    program = PROGRAMS[words[3]]
    environ = variables("\n".join(expanded(" ".join(values(unit, "Environment"))).split()))
    file = FOLDER / f"{program.name}.env"
    environ |= variables(file.read_text()) if file.exists() else {}
    return load(resolve(program.options), program.name, words[4:], environ | given)


def expanded(text: str) -> str:
    """As systemd does it for the instance `clicks`."""
    text = text.replace("%i", "clicks").replace("%S", "/var/lib")
    return text.replace("%d", "/run/credentials/unit")


def folders_of(options: Any) -> set[str]:
    names = ("output_dir", "dead_letter_dir", "data_path", "spool_dir")
    return {str(getattr(options, name)) for name in names if getattr(options, name, None)}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_command_line_is_valid(unit: Path) -> None:
    (folder,) = values(unit, "StateDirectory")
    assert folders_of(options_with(unit, {})) == {f"/var/lib/{expanded(folder)}"}


@pytest.mark.parametrize(
    ("name", "given", "folders"),
    [
        ("nsq_to_file@", {"NSQ_TO_FILE_OUTPUT_DIR": "/data"}, {"/data"}),
        (
            "nsq_to_http@",
            {"NSQ_TO_HTTP_DEAD_LETTER_DIR": "", "NSQ_TO_HTTP_DEAD_LETTER_TOPIC": "{topic}.dead"},
            set(),
        ),
        ("nsq_to_s3@", {"NSQ_TO_S3_SPOOL_DIR": "/data"}, {"/data"}),
        ("nsqtools-nsqd", {"NSQD_DATA_PATH": "/data"}, {"/data"}),
    ],
)
def test_a_file_of_options_is_not_overruled_by_the_command_line(
    name: str, given: dict[str, str], folders: set[str]
) -> None:
    assert folders_of(options_with(FOLDER / f"{name}.service", given)) == folders


def test_credentials_of_the_store_are_where_boto3_looks(tmp_path: Path) -> None:
    """systemd shows the file to this unit alone, under the name that boto3 is told."""
    import boto3

    unit = FOLDER / "nsq_to_s3@.service"
    (loaded,) = values(unit, "LoadCredential")
    name, _, source = loaded.partition(":")
    assert source.startswith("/etc/nsqtools/")
    told = variables("\n".join(values(unit, "Environment")))["AWS_SHARED_CREDENTIALS_FILE"]
    assert told == f"%d/{name}"
    (tmp_path / name).write_text("[default]\naws_access_key_id = K\naws_secret_access_key = S\n")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            patch.delenv(variable, raising=False)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", told.replace("%d", str(tmp_path)))
        found = boto3.session.Session().get_credentials()
    assert found is not None
    assert (found.method, found.access_key) == ("shared-credentials-file", "K")


@needs_systemd
@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_it(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(PYTHON, sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_it_is_closed(unit: Path) -> None:
    done = subprocess.run(
        [
            *("systemd-analyze", "security", "--no-pager", "--offline=true"),
            *(f"--threshold={EXPOSURE_MAX}", unit),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:]
