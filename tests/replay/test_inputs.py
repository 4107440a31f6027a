"""Names to files."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nsqtools.archive.files import STDIN_NAME, find_files
from nsqtools.errors import OptionsError, StorageError
from nsqtools.replay.inputs import Input, find_inputs
from nsqtools.replay.interrupt import Interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator


def touch(path: Path, content: bytes = b"x\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(*wanted: str) -> list[str]:
    return [source.name for source in find_inputs(wanted)]


def problems(*wanted: str) -> tuple[str, ...]:
    with pytest.raises(OptionsError) as caught:
        find_inputs(wanted)
    return caught.value.problems


def test_files_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    b, a = touch(tmp_path / "b", b"12345"), touch(tmp_path / "a")
    assert names(str(b), str(a)) == [str(b), str(a)]
    assert find_inputs([str(b)])[0].size_bytes == 5


def test_a_folder_is_every_finished_file_below_it(tmp_path: Path) -> None:
    for hidden in (".hidden", ".folder/x.log", "deep/.y", "x.log.part", "y.log.gz.bad"):
        touch(tmp_path / hidden)
    found = [touch(tmp_path / name) for name in ("a/b.log.zst", "a/c/d.log", "z.log.gz")]
    assert names(str(tmp_path)) == [str(path) for path in found]


def test_a_glob_is_sorted_and_may_go_deep(tmp_path: Path) -> None:
    found = [touch(tmp_path / name) for name in ("2.log", "1.log", "sub/3.log")]
    assert names(str(tmp_path / "*.log")) == sorted(map(str, found[:2]))
    assert names(str(tmp_path / "**" / "*.log")) == sorted(map(str, found))


def test_a_name_that_looks_like_a_glob_is_a_file_when_there_is_one(tmp_path: Path) -> None:
    odd = touch(tmp_path / "a[1].log")
    touch(tmp_path / "a1.log")
    assert names(str(odd)) == [str(odd)]


def test_what_is_meant_twice_is_read_once(tmp_path: Path) -> None:
    path = touch(tmp_path / "a.log")
    assert names(str(path), str(tmp_path), str(tmp_path / "*.log")) == [str(path)]


def test_what_is_meant_twice_by_other_names_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = touch(tmp_path / "logs" / "a.log")
    other = touch(tmp_path / "logs" / "b.log")
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "old").symlink_to(path.parent)
    monkeypatch.chdir(path.parent)
    given = ("a.log", "./a.log", "../logs/a.log", str(path), "../link", "../old/a.log", "../old")
    assert names(*given) == ["a.log", "../old/b.log"]
    assert [file.name for file in find_files(given)] == ["a.log", "../old/b.log"]
    assert names(str(other), ".") == [str(other), "a.log"]


def test_files_that_were_removed_are_not_taken_for_one(tmp_path: Path) -> None:
    """Two descriptors that a shell passes on: what was removed under one name is not the same file."""
    with contextlib.ExitStack() as held:
        given = []
        for body in (b"one\n", b"two\n"):
            path = touch(tmp_path / "a.log", body)
            given.append(f"/dev/fd/{held.enter_context(path.open('rb')).fileno()}")
            path.unlink()
        assert names(*given) == given
        assert [file.name for file in find_files(given)] == given


def test_every_name_that_is_nothing_is_told(tmp_path: Path) -> None:
    touch(tmp_path / "empty" / "x.part")
    wanted = [str(tmp_path / name) for name in ("none", "*.gz", "empty")]
    assert problems(*wanted) == (
        f"{wanted[0]}: no such file",
        f"{wanted[1]}: no file matches",
        f"{wanted[2]}: no finished file in this folder",
    )


def test_a_folder_that_may_not_be_read_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a.log")
    touch(tmp_path / "locked" / "b.log")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert problems(str(tmp_path)) == (f"{tmp_path / 'locked'}: permission denied",)


def test_a_closed_standard_input_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert problems("-") == ("-: standard input is closed",)


@contextlib.contextmanager
def piped_stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Standard input is a pipe; its other end is open while the block runs."""
    reads, writes = os.pipe()
    with os.fdopen(reads, "rb") as given:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(given))
        try:
            yield writes
        finally:
            with contextlib.suppress(OSError):
                os.close(writes)


def read_all(source: Input, interrupt: Interrupt | None = None) -> list[bytes]:
    with source.opened(interrupt=interrupt) as reader:
        return [body for batch in reader.batches() for body in batch.bodies]


def test_standard_input_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    with piped_stdin(monkeypatch) as writes, Interrupt() as interrupt:
        (source,) = find_inputs(["-"])
        assert source.name == STDIN_NAME
        os.write(writes, b"one\ntwo\n\nthree")
        os.close(writes)
        assert read_all(source, interrupt) == [b"one", b"two", b"", b"three"]


def test_a_pipe_by_name_is_a_source(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    os.write(writes, b"one\ntwo\n")
    os.close(writes)
    try:
        with Interrupt() as interrupt:
            (source,) = find_inputs([f"/dev/fd/{reads}"])
            assert read_all(source, interrupt) == [b"one", b"two"]
    finally:
        os.close(reads)


@pytest.mark.parametrize("wanted", [[], [b"one", b"two"]], ids=["interrupted", "written"])
def test_a_named_pipe_waits_for_its_writer_until_it_is_interrupted(
    tmp_path: Path, wanted: list[bytes]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (source,) = find_inputs([str(tmp_path / "pipe")])
    found: list[list[bytes]] = []
    with Interrupt() as interrupt:
        thread = threading.Thread(target=lambda: found.append(read_all(source, interrupt)))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive(), "nobody has opened it for writing yet"
        if wanted:
            (tmp_path / "pipe").write_bytes(b"one\ntwo\n")
        else:
            interrupt.fire()
        thread.join(20)
        assert not thread.is_alive()
    assert found == [wanted]


def test_reading_a_silent_pipe_ends_when_it_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[list[bytes]] = []
    with piped_stdin(monkeypatch) as writes, Interrupt() as interrupt:
        os.write(writes, b"a line that is long enough to be looked at before the others come\n")
        source = find_inputs(["-"])[0]
        thread = threading.Thread(target=lambda: found.append(read_all(source, interrupt)))
        thread.start()
        interrupt.fire()
        thread.join(20)
        assert not thread.is_alive()
    assert [len(bodies) for bodies in found] in ([0], [1])


def test_an_interrupt_holds_for_inputs_to_come_and_may_come_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with piped_stdin(monkeypatch) as writes, Interrupt() as interrupt:
        os.write(writes, b"never read\n")
        interrupt.fire()
        assert read_all(find_inputs(["-"])[0], interrupt) == []
    interrupt.fire()


def test_a_file_that_cannot_be_opened_names_itself(tmp_path: Path) -> None:
    source = Input(path=tmp_path / "gone")
    with pytest.raises(StorageError, match=r"open .*gone: No such file"), source.opened():
        pass


def test_what_is_left_out_of_a_folder_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.log", ".hid.log", "b.log.part", "c.part.bad", ".DS_Store"):
        (tmp_path / name).write_text("x\n")
    (tmp_path / "shadow.log").symlink_to("/etc/passwd")
    found = [source.path.name for source in find_inputs([str(tmp_path)]) if source.path]
    assert found == [".hid.log", "a.log"]
    (record,) = caplog.records
    assert "left out: not finished, hidden, or links" in record.getMessage()
    assert "files=4" in record.getMessage()


def test_a_linked_folder_within_a_folder_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "b.log").write_bytes(b"2\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.log").write_bytes(b"1\n")
    (tmp_path / "in" / "elsewhere").symlink_to(tmp_path / "old")
    found = find_inputs([str(tmp_path / "in")])
    assert [one.name for one in found] == [str(tmp_path / "in" / "a.log")]
    (record,) = caplog.records
    assert str(tmp_path / "in" / "elsewhere") in record.getMessage()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_took_the_name_of_a_file_in_a_folder_is_not_read(kind: str, tmp_path: Path) -> None:
    """Since the folder was listed: it may lead to what nobody else must see, or have no end."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret\n")
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "a.log"
    path.write_bytes(b"a\n")
    (found,) = find_inputs([str(folder)])
    path.unlink()
    if kind == "link":
        path.symlink_to(secret)
    else:
        os.mkfifo(path)
    with pytest.raises(StorageError, match="open"), found.opened():
        pass
    if kind == "link":  # which is read when it is asked for
        (named,) = find_inputs([str(path)])
        with named.opened() as reader:
            assert [body for batch in reader.batches() for body in batch.bodies] == [b"secret"]
