"""The benchmarks run whole and count exactly; how fast they are is no matter here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks import data
from tests.benchmarks.endpoint import OWN, server_name
from tests.benchmarks.figures import EMBEDDED, OURS
from tests.benchmarks.processes import Usage
from tests.benchmarks.table import RSS_TARGET_BYTES, Row, Sample, at_least, rss_targets

ROOT = Path(__file__).parent.parent
MESSAGES = 2000


def bench(tmp_path: Path, *argv: str, **environ: str) -> tuple[dict[str, Any], str]:
    found = tmp_path / "found.json"
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.benchmarks",
            f"--messages={MESSAGES}",
            "--runs=1",
            "--archive-bytes=3000000",
            "--upload-bytes=20000000",
            f"--json={found}",
            *argv,
        ],
        cwd=ROOT,
        env=_without_real_programs() | {"TMPDIR": str(tmp_path), **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("nsqtools-")] == []
    return json.loads(found.read_text()), ended.stdout


def _without_real_programs() -> dict[str, str]:
    """The bench would measure what the other tests run against, too."""
    named = ("NSQD_BINARY", "NSQ_BIN")
    return {name: value for name, value in os.environ.items() if name not in named}


def script(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\nexec {sys.executable} -m nsqtools {command}\n")
    path.chmod(0o700)


@pytest.mark.slow
def test_every_figure_is_taken_and_counts_are_exact(tmp_path: Path) -> None:
    found, shown = bench(tmp_path)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["loopback", *OURS, *EMBEDDED]
    assert {
        run["messages"]
        for name in (
            "ingest",
            "delivery",
            "replay-lines",
            "http",
            "http-100",
            "s3-moto",
            "many-nsqds",
        )
        for run in rows[name]["runs"]
    } == {MESSAGES}
    for name, row in rows.items():
        assert row["median_per_s"] > 0
        assert f"\n{name} " in shown
        assert name == "loopback" or row["ratio"] > 0
    assert rows["lines-none"]["disk_bytes"] == MESSAGES * (data.MESSAGE_BYTES + 1)
    mixed = sum(map(len, data.messages(MESSAGES, is_mixed=True)))
    assert rows["mixed-lines-none"]["disk_bytes"] == mixed + MESSAGES
    assert 4 < rows["lines-zstd"]["compression"] < 7
    assert rows["lines-zstd"]["peak_bytes"].keys() == {"broker", "archiver"}
    assert 0 < rows["lines-none"]["start_s"] < 5
    assert "many-nsqds / one-nsqd: " in shown
    assert len(found["targets"]) == 33
    assert len(found["load"]) == 9
    assert "\nupload to rclone: " in shown
    assert found["archive"]["archive_bytes"] >= 3_000_000
    assert found["archive"]["read_share"] > 0
    assert found["archive"]["fetched_bytes"] > 0
    assert "\narchive verify " in shown
    assert all(target["measured"] is not None for target in found["targets"])


@pytest.mark.slow
def test_the_real_programs_are_measured_where_they_are_named(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    script(tools / "nsqd", 'nsqd "$@"')
    script(tools / "nsq_to_file", 'nsq_to_file "$@"')
    script(tools / "to_nsq", 'file_to_nsq "$@" -')
    only = "ingest,real-ingest,nsq-gzip,nsq-to_nsq"
    found, shown = bench(
        tmp_path, f"--only={only}", NSQD_BINARY=str(tools / "nsqd"), NSQ_BIN=str(tools)
    )
    names = [row["name"] for row in found["rows"]]
    assert sorted(names) == sorted(["loopback", *only.split(",")])
    assert "ingest / real-ingest: " in shown
    assert "archive lines-zstd  " in shown
    assert "not measured" in shown


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False])
def test_the_endpoint_is_nginx_where_there_is_one(tmp_path: Path, *, own: bool) -> None:
    expected = OWN if own else server_name()
    environ = {"NGINX_BINARY": ""} if own else {}
    found, shown = bench(tmp_path, "--only=http,http-100", **environ)
    assert found["endpoint"] == expected
    assert f"endpoint of http: {expected}\n" in shown
    assert {run["messages"] for row in found["rows"][1:] for run in row["runs"]} == {MESSAGES}


def test_an_unknown_figure_is_refused() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "--only=nothing"],
        cwd=ROOT,
        env=_without_real_programs(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("bench: no figure nothing; there are archive, delivery")


def test_messages_are_what_the_header_says() -> None:
    made = list(data.messages(500))
    assert {len(message) for message in made} == {data.MESSAGE_BYTES}
    assert not any(b"\n" in message for message in made)
    assert made == list(data.messages(500))


def test_messages_of_many_sizes_are_lines_of_the_same_kind(tmp_path: Path) -> None:
    made = list(data.messages(500, is_mixed=True))
    sizes = list(map(len, made))
    assert len(set(sizes)) > 50
    assert 0.9 < sum(sizes) / len(sizes) / data.MESSAGE_BYTES < 1.1
    assert all(json.loads(message)["svc"] == "shop" for message in made)
    path = tmp_path / "mixed"
    data.write_messages(path, 500, is_mixed=True)
    assert data.read_messages(path) == made
    assert data.size_bytes(path, 1007) == 2 * sum(sizes) + sum(sizes[:7])


@pytest.mark.parametrize("count", [1, 199, 200, 401, 1000])
def test_mpubs_hold_every_message_once(tmp_path: Path, count: int) -> None:
    path = tmp_path / "messages"
    data.write_messages(path, count)
    full, times, rest = data.mpubs(path, "t", count)
    sent = [full[at % len(full)] for at in range(times)] + ([rest] if rest else [])
    assert sum(int.from_bytes(mpub[11:15], "big") for mpub in sent) == count
    for mpub in sent:
        assert mpub.startswith(b"MPUB t\n")
        assert int.from_bytes(mpub[7:11], "big") == len(mpub) - 11


def sample(rate: float, floor: float, peak_bytes: int = 0) -> Sample:
    usage = Usage(name="broker", cpu_s=rate, peak_bytes=peak_bytes)
    return Sample(messages=1000, seconds=1000 / rate, floor_per_s=floor, usages=(usage,))


def test_a_row_is_made_of_medians() -> None:
    row = Row(name="x", samples=(sample(10, 100), sample(30, 100, 9), sample(20, 50)))
    assert round(row.rate) == 20
    assert row.floor == 100
    assert row.ratio is not None
    assert round(row.ratio, 3) == 0.3
    assert row.cpu_s == {"broker": 20}
    assert row.peak_bytes == {"broker": 9}
    assert row.cells()[:5] == ("x", "20", "10..30", "100", "0.300")


def test_targets_can_be_missed() -> None:
    row = Row(name="x", samples=(sample(10, 100, RSS_TARGET_BYTES),))
    assert at_least("x", 10.1, row).cells()[-1] == "MISSED"
    assert at_least("x", 9.9, row).cells()[-1] == "met"
    assert at_least("x", 1, None).cells()[-1] == "not measured"
    assert [target.met for target in rss_targets([row], ["broker"])] == [False]
    assert row.cells()[7] == "broker 150!"
