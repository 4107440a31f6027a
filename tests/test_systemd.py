"""The units in systemd/: what they run, with which options, and what systemd itself says of them.

Nothing is started here; systemd-analyze only reads.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_command_line_is_valid(unit: Path) -> None:
    """With the variables of the unit and of the file to begin with, and nothing else."""
    (command,) = values(unit, "ExecStart")
    (folder,) = values(unit, "StateDirectory")
    words = shlex.split(
        command.replace("${STATE_DIRECTORY}", f"/var/lib/{folder}").replace("%i", "clicks")
    )
    assert words[:3] == [PYTHON, "-m", "nsqtools"]
    program = PROGRAMS[words[3]]
    environ = variables("\n".join(" ".join(values(unit, "Environment")).split()))
    file = FOLDER / f"{program.name}.env"
    environ |= variables(file.read_text()) if file.exists() else {}
    options = load(resolve(program.options), program.name, words[4:], environ)
    assert f"/var/lib/{folder}".replace("%i", "clicks") in {
        str(getattr(options, name, "")) for name in ("output_dir", "dead_letter_dir", "data_path")
    }


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
