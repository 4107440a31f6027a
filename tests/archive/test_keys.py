"""Key files: what is read back of them, whatever was cut, and what does not count."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import pytest
from tests.archive.helpers import batch_of

from nsqtools import durable
from nsqtools.archive import dead_keys
from nsqtools.archive import keys as keys_module
from nsqtools.archive.dead_keys import (
    DEAD_KEPT_S,
    KeyFiles,
    note_whole,
    remove_old,
    taken_over,
)
from nsqtools.archive.keys import KeyFile, Keys, digest
from nsqtools.wire.messages import Messages, encode_payload

if TYPE_CHECKING:
    from pathlib import Path

HALF = 64 << 10
UNIQUE = "7-00ff"


def keys(first: int, count: int, nsqd: str = "n:1") -> Keys:
    return Keys.of(batch_of([b"body"] * count, first, nsqd))


def created(folder: Path) -> KeyFile:
    return KeyFile.create(folder, "topic", "channel", HALF)


def found(path: Path) -> list[tuple[str, list[bytes]]] | None:
    with taken_over(path) as left:
        if left is None:
            return None
        return [(one.nsqd, [pair[0] for pair in one.pairs()]) for one in left.known]


def ids(first: int, count: int) -> list[bytes]:
    return [b"%016x" % number for number in range(first, first + count)]


def test_a_key_is_nsqd_id_and_time_whatever_the_sizes() -> None:
    payloads = [encode_payload(2**63 - 1 - at, 1, b"%016d" % at, b"x" * at) for at in range(100)]
    made = Keys.of(Messages(payloads, nsqd="n:1"))
    assert list(made.pairs()) == [(b"%016d" % at, 2**63 - 1 - at) for at in range(100)]
    assert Keys.from_pairs("n:1", made.pairs()) == made


def test_what_a_dead_writer_noted(tmp_path: Path) -> None:
    file = created(tmp_path)
    file.begin([keys(0, 3), keys(5, 1, "m:2")])
    assert file.commit(UNIQUE, 0, 100, [keys(10, 2)])
    assert file.commit(UNIQUE, 100, 200, [keys(20, 2), keys(30, 1, "m:2")])
    assert found(file.path) is None, "its writer lives"
    file.close()
    assert list(KeyFiles(tmp_path).of("topic", "channel")) == [file.path]
    before = [("n:1", ids(0, 3)), ("m:2", ids(5, 1))]
    assert found(file.path) == before, "nobody has said how far the file is whole"
    assert note_whole([file.path], UNIQUE, 200) == 200
    after = [*before, ("n:1", ids(10, 2)), ("n:1", ids(20, 2)), ("m:2", ids(30, 1))]
    assert found(file.path) == after
    assert note_whole([file.path], UNIQUE, 100) == 100, "told once"
    assert found(file.path) == after


@pytest.mark.parametrize(
    ("end", "whole", "kept"),
    [
        (0, 0, []),
        (99, 0, []),
        (100, 100, [10]),
        (150, 100, [10]),
        (200, 200, [10, 20]),
        (999, 999, [10, 20]),
    ],
)
def test_a_commit_counts_where_it_is_whole(
    end: int, whole: int, kept: list[int], tmp_path: Path
) -> None:
    file = created(tmp_path)
    file.begin([])
    file.commit(UNIQUE, 0, 100, [keys(10, 1)])
    file.commit(UNIQUE, 100, 200, [keys(20, 1)])
    file.close()
    assert note_whole([file.path], UNIQUE, end) == whole
    assert found(file.path) == [("n:1", ids(number, 1)) for number in kept]


def test_a_commit_in_the_place_of_one_that_failed(tmp_path: Path) -> None:
    """The first was cut back, and its messages are not there, though the file is as long."""
    file = created(tmp_path)
    file.begin([])
    for first, end in ((1, 100), (2, 100), (3, 250), (4, 200)):
        file.commit(UNIQUE, 0, end, [keys(first, 1)])
    file.commit(UNIQUE, 200, 300, [keys(5, 1)])
    file.whole(UNIQUE, 300)
    file.close()
    assert found(file.path) == [("n:1", ids(4, 1)), ("n:1", ids(5, 1))]


def test_files_of_which_nobody_says_that_they_are_whole_do_not_count(tmp_path: Path) -> None:
    """A first commit failed, and its file was taken back."""
    file = created(tmp_path)
    file.begin([])
    file.commit("taken-back", 0, 100, [keys(1, 1)])
    file.commit(UNIQUE, 0, 100, [keys(1, 2)])
    file.whole(UNIQUE, 50)
    file.close()
    assert found(file.path) == []


def test_it_does_not_grow_and_an_older_half_says_nothing(tmp_path: Path) -> None:
    file = created(tmp_path)
    remembered = keys(0, 2)
    file.begin([remembered])
    at = begun = 0
    for number in range(1, 3000):
        end = at + 100
        if not file.commit(UNIQUE, at, end, [keys(number, 5)]):
            remembered = keys(number, 2)
            file.begin([remembered])
            begun += 1
            assert file.commit(UNIQUE, at, end, [keys(number, 5)])
        at = end
    file.close()
    assert begun > 5
    assert file.path.stat().st_size <= 2 * HALF
    note_whole([file.path], UNIQUE, at)
    known = found(file.path)
    assert known is not None
    assert known[0] == ("n:1", ids(int(remembered.ids[:16], 16), 2))
    assert known[-1] == ("n:1", ids(2999, 5))
    assert len(known) < 1000


def test_cut_at_every_byte_it_says_nothing_that_is_not_so(tmp_path: Path) -> None:
    file = created(tmp_path)
    file.begin([keys(1, 1)])
    file.commit(UNIQUE, 0, 100, [keys(2, 1)])
    file.whole(UNIQUE, 100)
    file.begin([keys(1, 1), keys(2, 1)])
    file.commit(UNIQUE, 100, 200, [keys(3, 1)])
    file.close()
    data = file.path.read_bytes()
    whole = [("n:1", ids(1, 1)), ("n:1", ids(2, 1))]
    seen = set()
    for size in [*range(300), *range(HALF - 5, len(data) + 1)]:
        file.path.write_bytes(data[:size])
        known = found(file.path)
        assert known in (whole, whole[:1], [])
        seen.add(len(known or ()))
    assert seen == {0, 2}
    for at in range(len(data)):
        if data[at]:
            file.path.write_bytes(data[:at] + bytes((data[at] ^ 0x55,)) + data[at + 1 :])
            assert found(file.path) in (whole, whole[:1], [])


def test_how_far_files_are_whole_can_be_noted_of_a_file_that_is_full(tmp_path: Path) -> None:
    """A writer that was killed with hardly any room left: recovery notes that in its file."""
    uniques = [f"{number}-00ff" for number in range(100)]
    file = created(tmp_path)
    file.begin([])
    for number, unique in enumerate(uniques):
        assert file.commit(unique, 0, 50, [keys(number, 1)])
    last = len(uniques)
    while file.commit(uniques[0], last, last + 1, [keys(last, 1)]):
        last += 1
    file.close()
    for unique in uniques:
        assert note_whole([file.path], unique, last) == last
    known = [one for _, column in found(file.path) or [] for one in column]
    assert sorted(known) == ids(0, last)


def test_what_does_not_fit_is_left_out(tmp_path: Path) -> None:
    file = created(tmp_path)
    file.begin([keys(0, 2), keys(10, 3000), keys(20, 2)])
    assert not file.commit(UNIQUE, 0, 100, [keys(0, 3000)])
    file.close()
    assert found(file.path) == [("n:1", ids(0, 2))]


def left_by_a_dead_writer(folder: Path) -> Path:
    file = created(folder)
    file.begin([keys(0, 3)])
    file.close()
    return file.path


def test_a_thread_that_looks_at_a_file_is_not_taken_for_its_writer(tmp_path: Path) -> None:
    """Recovery notes something in it in one thread, while the next writer begins in another."""
    path = left_by_a_dead_writer(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        with taken_over(path):
            looking = pool.submit(found, path)
            done, _ = wait([looking], timeout=0.3)
            assert not done, "it waits for the other thread"
        assert looking.result(timeout=20) == [("n:1", ids(0, 3))]


def test_a_process_that_looks_at_a_file_is_not_taken_for_its_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = left_by_a_dead_writer(tmp_path)
    fd = durable.open_existing(path)
    durable.lock_file(fd, path)
    waited = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            durable.close(fd)

    monkeypatch.setattr("nsqtools.archive.dead_keys.time.sleep", sleep)
    assert found(path) == [("n:1", ids(0, 3))]
    assert len(waited) == 2


def test_many_topics_of_a_living_writer_are_waited_for_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes share a work folder: who begins as the second has as many topics as the first."""
    waited: list[float] = []
    monkeypatch.setattr("nsqtools.archive.dead_keys.time.sleep", waited.append)
    dead = left_by_a_dead_writer(tmp_path)
    living = [created(tmp_path) for _ in range(20)]
    assert [found(file.path) for file in living] == [None] * len(living)
    assert 0 < len(waited) < len(living)
    assert found(dead) == [("n:1", ids(0, 3))]
    for file in living:
        file.begin([keys(7, 1)])
        file.close()
        assert found(file.path) == [("n:1", ids(7, 1))]


def test_writers_whose_files_are_gone_are_forgotten(tmp_path: Path) -> None:
    """A process that runs for months sees any number of them begin and end."""
    gone = [created(tmp_path) for _ in range(5)]
    assert found(gone[0].path) is None
    for file in gone:
        file.path.unlink()
        file.close()
    living = created(tmp_path)
    assert found(living.path) is None
    remembered = {path for path in dead_keys._living._paths if path.is_relative_to(tmp_path)}
    assert remembered == {living.path}
    living.close()


def test_names_that_are_none_are_not_looked_at(tmp_path: Path) -> None:
    file = created(tmp_path)
    file.close()
    (file.path.parent / f"{digest('topic', 'channel')}-1-x.keys").write_bytes(b"x")
    (file.path.parent / "notes.txt").write_bytes(b"x")
    assert list(KeyFiles(tmp_path).of("topic", "channel")) == [file.path]
    file.path.unlink()
    assert found(file.path) is None
    assert keys_module.KEY_BYTES == 24


def test_a_file_that_was_found_before_it_was_locked_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer took it for that of a dead one, and removes it."""
    real = durable.lock_file
    found_paths: list[Path] = []

    def lock_late(fd: int, path: Path) -> None:
        if not found_paths:
            found_paths.append(path)
            path.unlink()
        real(fd, path)

    monkeypatch.setattr(durable, "lock_file", lock_late)
    file = created(tmp_path)
    assert file.path != found_paths[0]
    assert file.path.exists()
    file.close()


def test_what_fits_its_checksum_and_nothing_else_ends_a_half(tmp_path: Path) -> None:
    for kind, content in (
        (b"K", b"\0\1\0\0\0\5n" + bytes(24)),
        (b"K", b"\0\1\0\0\0\0\xff"),
        (b"K", b"\0"),
        (b"C", b""),
        (b"W", b"\1x"),
    ):
        file = created(tmp_path)
        file.begin([keys(0, 2)])
        file._append(kind[0], content)
        file.close()
        assert found(file.path) == [("n:1", ids(0, 2))]
        assert note_whole([file.path], UNIQUE, 7) == 7
        file.path.unlink()


def test_what_nobody_has_taken_over_for_a_week_is_removed(tmp_path: Path) -> None:
    """But not of a writer that lives, however little it has to note."""
    gone, alive = created(tmp_path), created(tmp_path)
    for file in (gone, alive):
        file.begin([])
    gone.close()
    written_s = gone.path.stat().st_mtime
    assert remove_old(tmp_path, written_s + DEAD_KEPT_S - 1) == 0
    assert remove_old(tmp_path, written_s + DEAD_KEPT_S + 60) == 1
    assert list(KeyFiles(tmp_path).of("topic", "channel")) == [alive.path]
    alive.close()
