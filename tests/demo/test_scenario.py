"""The demonstration: it says `identical` when it is so, and never when it is not."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

import pytest

from nsqtools.demo import log_input, scenario
from nsqtools.demo.options import DemoOptions
from nsqtools.demo.scenario import Demo, play
from nsqtools.errors import ArchiveError, DamagedArchive, OptionsError, StorageError
from nsqtools.options import load
from nsqtools.replay.chunks import ChunkLimits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STAGES = ("publish", "archive", "replay", "verify")


def options_for(tmp_path: Path, *argv: str) -> DemoOptions:
    return load(DemoOptions, "demo", [f"--output-dir={tmp_path / 'demo'}", *argv], {})


async def demonstrate(tmp_path: Path, content: bytes, *argv: str) -> int:
    path = tmp_path / "given.log"
    path.write_bytes(content)
    return await play(options_for(tmp_path, f"--input={path}", *argv))


def digest_of(bodies: list[bytes]) -> str:
    total = sum(int.from_bytes(hashlib.sha256(body).digest(), "big") for body in bodies)
    return f"{total % 2**256:064x}"


def expect(shown: str, lines: list[bytes]) -> None:
    """Every figure that is printed is that of these lines."""
    bodies = [line for line in lines if line]
    size = sum(map(len, bodies))
    for stage in STAGES:
        assert re.search(rf"^{stage} +{len(bodies):,} +{size:,} ", shown, re.MULTILINE), shown
    assert (
        f"verdict  identical: {len(bodies):,} messages ({size:,} bytes) published,"
        f" {len(bodies):,} ({size:,} bytes) came back\n"
    ) in shown
    assert f"digest   {digest_of(bodies)} in\n         {digest_of(bodies)} out\n" in shown
    empty = len(lines) - len(bodies)
    assert (f"skipped  {empty:,} empty lines" in shown) == bool(empty)


ODD = [b"plain", b"", b"nul \0 in it", b"\xff\xfe no utf-8", b"", b"same", b"same", b"\r", b" "]


@pytest.mark.parametrize("end", [b"", b"\n"])
async def test_any_bytes_come_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], end: bytes
) -> None:
    lines = [*ODD, b"x" * 100_000, b"unterminated, or not"]
    assert await demonstrate(tmp_path, b"\n".join(lines) + end) == 0
    expect(capsys.readouterr().out, lines)


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n\n"])
async def test_a_file_without_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    assert await demonstrate(tmp_path, content) == 0
    shown = capsys.readouterr().out
    expect(shown, content.split(b"\n")[:-1])
    assert "(0 files)" in shown


async def test_the_log_of_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [hashlib.sha256(b"%d" % number).hexdigest().encode() for number in range(5000)]
    small, log = tmp_path / "small.log", tmp_path / "messages"
    small.write_bytes(b"too small to show anything\n")
    log.write_bytes(b"\n".join(lines) + b"\n")
    monkeypatch.setattr(
        log_input, "REAL_LOGS", (str(tmp_path / "none"), str(tmp_path), str(small), str(log))
    )
    assert await play(options_for(tmp_path)) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"input    {log} (a log of this machine), {log.stat().st_size:,} bytes")
    expect(shown, lines)
    files = int(re.search(r"^archive  .* \((\d+) files\)$", shown, re.MULTILINE)[1])  # type: ignore[index]
    assert files == len(list((tmp_path / "demo" / "archive").glob("*.log.zst"))) > 1


async def test_a_log_is_made_up_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_input, "REAL_LOGS", ())
    assert await play(options_for(tmp_path, "--messages=3000")) == 0
    shown = capsys.readouterr().out
    made_up = tmp_path / "demo" / "access.log"
    assert shown.startswith(f"input    {made_up} (made up: this machine has no log to read)")
    lines = made_up.read_bytes().split(b"\n")[:-1]
    assert len(lines) == 3000
    expect(shown, lines)


async def test_files_are_finished_at_the_size_that_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await demonstrate(tmp_path, b"x\n" * 100, "--rotate-size=1GiB") == 0
    assert "(1 file)" in capsys.readouterr().out


async def test_lines_that_are_too_long_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ChunkLimits(messages_max=5, msg_size_max_bytes=10, body_size_max_bytes=1000)
    monkeypatch.setattr(scenario, "LIMITS", limits)
    assert await demonstrate(tmp_path, b"short\n" + b"x" * 11 + b"\n" + b"y" * 10) == 0
    shown = capsys.readouterr().out
    assert "skipped  1 lines longer than 10 bytes" in shown
    assert "identical: 2 messages (15 bytes)" in shown


@pytest.mark.parametrize("change", ["changed", "lost", "twice", "swapped bytes"])
async def test_a_difference_is_seen(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    archived = Demo._archived

    def tampered(self: Demo) -> Iterator[list[bytes]]:
        bodies = [body for batch in archived(self) for body in batch]
        at = bodies.index(b"line 50")
        yield {
            "changed": [*bodies[:at], b"line 5O", *bodies[at + 1 :]],
            "lost": bodies[:at] + bodies[at + 1 :],
            "twice": [*bodies, bodies[at]],
            "swapped bytes": [*bodies[:at], b"line 05", *bodies[at + 1 :]],
        }[change]

    monkeypatch.setattr(Demo, "_archived", tampered)
    assert await demonstrate(tmp_path, b"\n".join(b"line %d" % n for n in range(100))) == 1
    shown = capsys.readouterr().out
    assert "verdict  DIFFERENT: 100 messages" in shown
    assert "identical" not in shown
    digests = re.findall(r"([0-9a-f]{64}) (?:in|out)$", shown, re.MULTILINE)
    assert len(set(digests)) == 2


@pytest.mark.parametrize("cut", [False, True])
async def test_a_changed_byte_in_the_archive_fails(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cut: bool,
) -> None:
    archived = Demo._archived

    def damaged(self: Demo) -> Iterator[list[bytes]]:
        path = next(iter(sorted(self.archive.glob("*.log.zst"))))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data[: len(data) // 2] if cut else data)
        return archived(self)

    monkeypatch.setattr(Demo, "_archived", damaged)
    lines = [hashlib.sha256(b"%d" % n).hexdigest().encode() for n in range(3000)]
    with pytest.raises(BaseExceptionGroup) as caught:
        await demonstrate(tmp_path, b"\n".join(lines))
    matched, rest = caught.value.split(ArchiveError)
    assert rest is None
    assert matched is not None
    assert isinstance(matched.exceptions[0], DamagedArchive)
    assert "identical" not in capsys.readouterr().out


async def test_a_folder_of_a_former_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await demonstrate(tmp_path, b"one\n") == 0
    with pytest.raises(OptionsError, match=r"--output-dir: .*broker is not empty"):
        await demonstrate(tmp_path, b"one\n")
    capsys.readouterr()


async def test_an_input_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"read .*none: No such file"):
        await play(options_for(tmp_path, f"--input={tmp_path / 'none'}"))
