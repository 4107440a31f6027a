from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.archive.failing_os import FailingOs
from tests.support.disks import open_files

from nsqtools import durable
from nsqtools.broker import files as module
from nsqtools.broker import journal as journal_module
from nsqtools.broker.journal import MAGIC, ChannelState, Journal, Pending
from nsqtools.broker.ranges import Ranges
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "c.channel", open_files())
    made.create(ChannelState(100))
    yield made
    made.close(ChannelState(0).frozen())


def reload(journal: Journal) -> ChannelState:
    journal.flush()
    again = Journal(journal.path, open_files())
    state, cut_bytes = again.load()
    again.close(state.frozen())
    assert cut_bytes == 0
    return state


def rewrite(journal: Journal, state: ChannelState) -> None:
    made = journal.rewrite(state.frozen())
    made.write()
    made.follow()
    made.place()
    made.settle()


def test_a_new_journal_is_where_it_was_made(journal: Journal) -> None:
    assert reload(journal) == ChannelState(100)


def test_each_kind_of_record(journal: Journal) -> None:
    journal.delivered(100, 110)
    journal.finished([(100, 103)], [])
    journal.finished([], [109, 104])
    journal.queued([(105, 3, 0), (106, 1, 5_000)])
    journal.carried(105, b"frame")
    journal.voided(120, 130)
    journal.paused(True)
    expected = ChannelState(
        110,
        True,
        {
            103: Pending(1),
            105: Pending(3),
            106: Pending(1, 5_000),
            107: Pending(1),
            108: Pending(1),
        },
        {105: b"frame"},
        Ranges([(120, 130)]),
    )
    assert reload(journal) == expected
    journal.passed(120, 130)
    journal.finished([], [105])
    journal.paused(False)
    state = reload(journal)
    assert (state.cursor, list(state.voids), state.carried, state.paused) == (130, [], {}, False)
    journal.emptied(140)
    assert reload(journal) == ChannelState(140)


numbers = st.integers(100, 140)
runs = st.tuples(numbers, st.integers(1, 20)).map(lambda run: (run[0], run[0] + run[1]))
steps: st.SearchStrategy[list[Callable[[Journal], None]]] = st.lists(
    st.one_of(
        runs.map(lambda run: lambda journal: journal.delivered(*run)),
        st.tuples(st.lists(runs, max_size=3), st.lists(numbers, unique=True, max_size=3)).map(
            lambda some: lambda journal: journal.finished(*some)
        ),
        st.lists(st.tuples(numbers, st.integers(0, 9), st.integers(0, 9))).map(
            lambda entries: lambda journal: journal.queued(entries)
        ),
        runs.map(
            lambda run: (
                lambda journal: journal.queued(
                    [(number, 0, 9) for number in range(*run)], is_ahead=True
                )
            )
        ),
        runs.map(lambda run: lambda journal: journal.passed(*run)),
        runs.map(lambda run: lambda journal: journal.voided(*run)),
        numbers.map(lambda number: lambda journal: journal.carried(number, b"f")),
        st.booleans().map(lambda paused: lambda journal: journal.paused(paused)),
        numbers.map(lambda number: lambda journal: journal.emptied(number)),
    ),
    max_size=20,
)


@given(steps)
def test_a_compacted_journal_says_the_same(steps: list[Callable[[Journal], None]]) -> None:
    """Whatever happened, a snapshot of the state loads as that state."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "c.channel", open_files())
        journal.create(ChannelState(100))
        for step in steps:
            step(journal)
        state = reload(journal)
        rewrite(journal, state)
        assert reload(journal) == state
        journal.close(state.frozen())


def test_a_torn_tail_is_cut_at_every_offset(journal: Journal, tmp_path: Path) -> None:
    states = [reload(journal)]
    sizes = [journal.path.stat().st_size]
    for number in range(100, 106):
        journal.delivered(number, number + 1)
        states.append(reload(journal))
        sizes.append(journal.path.stat().st_size)
    raw = journal.path.read_bytes()
    for size in range(sizes[0], len(raw) + 1):
        path = tmp_path / "torn.channel"
        path.write_bytes(raw[:size])
        torn = Journal(path, open_files())
        state, cut_bytes = torn.load()
        whole = max(at for at, end in enumerate(sizes) if end <= size)
        assert state == states[whole]
        assert cut_bytes == size - sizes[whole]
        torn.delivered(200, 201)
        assert reload(torn).cursor == 201
        torn.close(state.frozen())


def test_what_is_deferred_ahead_of_the_cursor_is_never_void_alone(
    journal: Journal, tmp_path: Path
) -> None:
    journal.queued([(120, 0, 5_000), (121, 0, 5_000)], is_ahead=True)
    whole = reload(journal)
    assert whole == ChannelState(
        100, pending={at: Pending(0, 5_000) for at in (120, 121)}, voids=Ranges([(120, 122)])
    )
    raw = journal.path.read_bytes()
    for size in range(len(raw)):
        path = tmp_path / "torn.channel"
        path.write_bytes(raw[:size])
        torn = Journal(path, open_files())
        state, _ = torn.load()
        assert not state.voids, size
        torn.remove()


def test_what_stands_behind_damage_is_not_believed(journal: Journal) -> None:
    journal.delivered(100, 101)
    journal.flush()
    size = journal.path.stat().st_size
    journal.delivered(101, 102)
    journal.flush()
    raw = bytearray(journal.path.read_bytes())
    raw[size - 1] ^= 1
    journal.path.write_bytes(raw)
    state, cut_bytes = Journal(journal.path, open_files()).load()
    assert state == ChannelState(100)
    assert cut_bytes > len(raw) - size


def test_a_foreign_file_is_set_aside_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "c.channel"
    path.write_bytes(b"not a journal, but long enough")
    journal = Journal(path, open_files())
    state, cut_bytes = journal.load()
    assert (state, cut_bytes) == (ChannelState(0), 30)
    assert journal.wants_rewrite
    assert (tmp_path / "c.channel.bad").read_bytes() == b"not a journal, but long enough"
    rewrite(journal, ChannelState(7))
    assert reload(journal) == ChannelState(7)
    assert path.read_bytes().startswith(MAGIC)
    journal.close(ChannelState(0).frozen())


class FullDisk:
    """The module `os`, with a disk that takes `room` more bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def writev(self, fd: int, parts: list[bytes]) -> int:
        return self.write(fd, b"".join(parts))

    def ftruncate(self, fd: int, size_bytes: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write(self, fd: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = min(self.room, len(data))
        self.room -= count
        return os.write(fd, data[:count])


@pytest.mark.parametrize("room", [0, 1, 20])
def test_behind_a_write_that_failed_only_a_snapshot_counts(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    journal.delivered(100, 101)
    journal.finished([], [100])
    with monkeypatch.context() as patch:
        patch.setattr(module, "os", FullDisk(room))
        with pytest.raises(StorageError) as caught:
            journal.flush()
    assert caught.value.errno == errno.ENOSPC
    # Without the hand-out before it, this one would say that 100 was acknowledged.
    journal.delivered(101, 102)
    journal.flush()
    torn = Journal(journal.path, open_files())
    assert torn.load()[0] == ChannelState(100)
    torn.close(ChannelState(0).frozen())
    assert [journal.wants_rewrite] == [True]
    state = ChannelState(102, pending={101: Pending(1)})
    rewrite(journal, state)
    assert [journal.wants_rewrite] == [False]
    journal.finished([], [101])
    assert reload(journal) == ChannelState(102)


def test_a_journal_may_lie_behind_a_link(journal: Journal, tmp_path: Path) -> None:
    journal.delivered(100, 1000)
    journal.flush()
    link = tmp_path / "l.channel"
    link.symlink_to(journal.path.name)  # shorter than what it leads to
    state, cut_bytes = Journal(link, open_files()).load()
    assert (state.cursor, cut_bytes) == (1000, 0)


def test_a_missing_journal_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        Journal(tmp_path / "none.channel", open_files()).load()


def test_a_large_snapshot_is_made_again_when_that_pays(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "COMPACT_BYTES", 100)
    state = ChannelState(2000, pending={number: Pending(1) for number in range(1000, 2000)})
    rewrite(journal, state)
    snapshots = 0
    for _ in range(1000):
        journal.queued([(1000, 2, 0)])
        journal.flush()
        if journal.wants_rewrite:
            rewrite(journal, state)
            snapshots += 1
    assert snapshots == 1


def on_disk(journal: Journal) -> ChannelState:
    """What a kill would leave now."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / journal.path.name
        copy.write_bytes(journal.path.read_bytes())
        return Journal(copy, open_files()).load()[0]


HANDED_OUT = {100: Pending(1), 101: Pending(1), 102: Pending(1)}


def test_what_is_added_while_the_rewrite_of_a_broken_journal_gets_its_name_is_kept(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "os", FullDisk(0))
        journal.paused(False)
        with pytest.raises(StorageError):
            journal.flush()
    made = journal.rewrite(ChannelState(100).frozen())
    made.write()
    made.follow()
    journal.delivered(100, 103)
    journal.flush()
    made.place()
    made.settle()
    journal.delivered(103, 104)
    journal.flush()
    assert on_disk(journal) == ChannelState(104, pending={**HANDED_OUT, 103: Pending(1)})


def test_a_rewrite_that_is_given_up_takes_nothing_from_the_old_file(journal: Journal) -> None:
    journal.delivered(100, 103)
    made = journal.rewrite(ChannelState(103, pending=dict(HANDED_OUT)).frozen())
    made.give_up()
    journal.delivered(103, 104)
    journal.flush()
    assert on_disk(journal) == ChannelState(104, pending={**HANDED_OUT, 103: Pending(1)})


def test_a_rewrite_that_got_the_name_and_is_given_up_is_followed_by_nothing(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder cannot be synced, or the broker ends just then: the old file has no name any more."""
    made = journal.rewrite(ChannelState(100).frozen())
    made.write()
    made.follow()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "os", FailingOs(0, only={"fsync"}, code=errno.EIO))
        with pytest.raises(StorageError):
            made.place()
    made.give_up()
    journal.delivered(100, 103)
    journal.flush()
    assert on_disk(journal) == ChannelState(100)
    assert journal.wants_rewrite
    rewrite(journal, ChannelState(103, pending=dict(HANDED_OUT)))
    assert reload(journal) == ChannelState(103, pending=dict(HANDED_OUT))


def test_a_channel_that_is_deleted_while_its_journal_is_rewritten_stays_away(
    journal: Journal,
) -> None:
    made = journal.rewrite(ChannelState(100).frozen())
    made.write()
    journal.remove()
    with pytest.raises(StorageError, match="meanwhile"):
        made.follow()
    made.clean_up()
    again = journal.rewrite(ChannelState(100).frozen())
    again.write()
    again.follow()
    journal.remove()
    with pytest.raises(StorageError, match="meanwhile"):
        again.place()
    again.clean_up()
    assert not list(journal.path.parent.iterdir())
