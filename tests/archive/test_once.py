"""A message that is delivered again is written once, in a run and after a kill; no other is left out."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import FailingOs
from tests.archive.helpers import NSQD, PAIRS, close, payload, read_bodies, spec, visible
from tests.archive.test_killed import ACKNOWLEDGED, CALLS_MAX, in_child

from nsqtools import durable
from nsqtools.archive import once as once_module
from nsqtools.archive import recovery
from nsqtools.archive.keys import Keys
from nsqtools.archive.once import OnceOnly
from nsqtools.archive.recovery import recover
from nsqtools.archive.rotation import RotationPolicy
from nsqtools.archive.writer import ArchiveWriter
from nsqtools.errors import StorageError
from nsqtools.wire.messages import Messages, encode_payload

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from nsqtools.archive.writer import ArchiveSpec

MESSAGES = 6
# Of so many that were acknowledged the FIN is lost.
FINS_LOST = 2


def message(number: int, *, attempts: int = 1, nsqd: str = NSQD, ts_ns: int = 0) -> Messages:
    one = encode_payload(ts_ns or 10**18 + number, attempts, b"%016x" % number, b"%d" % number)
    return Messages([one], nsqd=nsqd)


def numbers(batches: Sequence[Messages]) -> list[int]:
    return [int(body) for each in batches for body in each.bodies]


def opened(folder: Path, keys_max: int = 10) -> OnceOnly:
    once = OnceOnly(folder, "topic", "channel", keys_max)
    once.open()
    return once


def commit(once: OnceOnly, *batches: Messages) -> list[int]:
    """What is written of these."""
    new = once.new_of(batches)
    once.committed([Keys.of(each) for each in new])
    return numbers(new)


# Which messages are looked up, and found


def test_what_nsqd_says_is_new_is_not_looked_up(tmp_path: Path) -> None:
    once = opened(tmp_path)
    batches = [message(1), message(2)]
    assert once.new_of(batches) is batches
    assert commit(once, *batches) == [1, 2]
    assert commit(once, message(1)) == [1], "nothing has happened: it is another one"


def test_one_that_timed_out_while_it_was_held(tmp_path: Path) -> None:
    once = opened(tmp_path)
    assert commit(once, message(1), message(2)) == [1, 2]
    assert commit(once, message(2, attempts=2), message(3, attempts=2)) == [3]
    assert commit(once, message(2, attempts=3), message(3, attempts=3)) == []


def test_both_copies_in_one_commit(tmp_path: Path) -> None:
    once = opened(tmp_path)
    assert commit(once, message(1), message(2), message(1, attempts=2)) == [1, 2]
    both = Messages([*message(4).payloads, *message(4, attempts=2).payloads], nsqd=NSQD)
    assert commit(once, both) == [4]


def test_an_id_that_comes_again_with_another_message(tmp_path: Path) -> None:
    once = opened(tmp_path)
    commit(once, message(1))
    assert commit(once, message(1, attempts=2, ts_ns=5)) == [1]


def test_another_nsqd_has_the_same_id(tmp_path: Path) -> None:
    once = opened(tmp_path)
    commit(once, message(1))
    assert commit(once, message(1, attempts=2, nsqd="other:4150")) == [1]


def test_one_whose_fin_was_refused_is_known_however_late_it_comes(tmp_path: Path) -> None:
    once = opened(tmp_path, keys_max=4)
    commit(once, message(1))
    commit(once, message(2))
    once.may_come_again(NSQD, b"%016x" % 1)
    once.may_come_again(NSQD, b"of something else")
    for number in range(10, 30):
        commit(once, message(number))
    assert commit(once, message(1, attempts=2), message(2, attempts=2)) == [2]


def test_one_whose_fin_is_refused_when_its_key_is_gone_is_counted(tmp_path: Path) -> None:
    """A process that stood still reads what nsqd sent again each time that the timeout was over."""
    once = opened(tmp_path, keys_max=4)
    for number in range(10):
        commit(once, message(number))
    for _ in range(2):
        once.may_come_again(NSQD, b"%016x" % 8)
    assert once.forgotten == 0
    once.may_come_again(NSQD, b"%016x" % 1)
    assert once.forgotten == 1
    assert commit(once, message(1, attempts=2), message(8, attempts=2)) == [1]


def test_an_nsqd_that_was_killed_delivers_as_if_for_the_first_time(tmp_path: Path) -> None:
    once = opened(tmp_path)
    commit(once, message(1), message(2))
    once.may_come_again(NSQD, None)
    assert commit(once, message(1), message(2), message(3)) == [3]
    assert commit(once, message(1), message(3), message(4)) == [4], "it was killed once more"


def test_after_a_while_what_is_new_is_not_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once_module, "WATCHED", 3)
    once = opened(tmp_path)
    commit(once, message(1), message(2))
    once.may_come_again(NSQD, None)
    for number in (5, 6, 7):
        commit(once, message(number))
    batches = [message(1)]
    assert once.new_of(batches) is batches
    assert commit(once, message(2, attempts=2)) == [], "but if nsqd says that it comes again"


def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once_module, "AWAITED_MAX", 5)
    once = opened(tmp_path, keys_max=4)
    for round_ in range(10):
        for nsqd in range(10):
            commit(once, message(round_ * 10 + nsqd, nsqd=f"n{nsqd}:1"))
    assert sum(recent.count for recent in once._recent.values()) <= 8
    for nsqd in range(10):
        once.may_come_again(f"n{nsqd}:1", None)
    assert sum(map(len, once._awaited.values())) == 5
    assert once.forgotten > 0


# Across runs


def test_a_run_that_ended(tmp_path: Path) -> None:
    """FINs that were on their way; the file is published."""
    for first in (0, 3, 6):
        writer = ArchiveWriter(replace(spec(tmp_path), keys_max=10))
        assert writer.once is not None
        writer.once.open()
        again = [message(number, attempts=2) for number in range(max(0, first - 2), first)]
        done = writer.commit([*again, *[message(number) for number in range(first, first + 3)]])
        assert (done.messages, done.duplicates) == (3, len(again))
        close(writer)
        writer.abandon()
    assert sorted(bodies_in(tmp_path)) == list(range(9))


def test_two_archivers_of_a_channel(tmp_path: Path) -> None:
    """Each looks after itself; what a dead one left is taken over by the next that starts."""
    wanted = replace(spec(tmp_path), keys_max=10)
    one, two = ArchiveWriter(wanted), ArchiveWriter(wanted)
    for writer, number in ((one, 1), (two, 2)):
        assert writer.once is not None
        writer.once.open()
        writer.commit([message(number)])
    close(one)
    one.abandon()
    three = ArchiveWriter(wanted)
    assert three.once is not None
    three.once.open()
    done = three.commit([message(1, attempts=2), message(2, attempts=2), message(3)])
    assert (done.messages, done.duplicates) == (2, 1), "the second one lives, and may need its own"
    close(two)
    close(three)


def bodies_in(output: Path) -> list[int]:
    found: list[int] = []
    for path in visible(output):
        bodies, damage = read_bodies(path)
        assert damage is None
        found += map(int, bodies)
    return found


def archive(wanted: ArchiveSpec, acknowledged: int, pipe: int) -> None:
    """A whole run: what was left is finished, then comes what nsqd delivers, some of it again."""
    assert not any(result.failed for result in recover(wanted.work_dir))
    writer = ArchiveWriter(wanted)
    assert writer.once is not None
    writer.once.open()
    for number in range(max(0, acknowledged - FINS_LOST), MESSAGES):
        # A killed nsqd delivers some as if for the first time.
        writer.commit([message(number, attempts=1 + number % 2)])
        os.write(pipe, ACKNOWLEDGED.pack(number + 1))
        writer.finish()
    writer.close()
    while writer.finish() is not None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_killed_at_every_call(record_format: str, compression: str, tmp_path: Path) -> None:
    """kill -9 before call N, the next run before another one, and so on: lost 0, twice 0."""
    for kill_at in range(0, CALLS_MAX, 3):
        output, work = tmp_path / f"{kill_at}", tmp_path / f"{kill_at}-work"
        output.mkdir()
        work.mkdir()
        wanted = replace(
            spec(
                output,
                record_format,
                compression,
                work_dir=work,
                rotation=RotationPolicy(rotate_records=3),
                compact=True,
            ),
            keys_max=10,
        )
        acknowledged, done, runs = 0, False, 0
        kills = [kill_at, kill_at * 7 % 61, kill_at * 11 % 89, CALLS_MAX]
        while not done:
            done, told = in_child(kills[runs], "links", partial(archive, wanted, acknowledged))
            acknowledged = max(acknowledged, told)
            runs += 1
        twice = [body for body, count in Counter(bodies_in(output)).items() if count > 1]
        assert (sorted(bodies_in(output)), twice) == (list(range(MESSAGES)), [])
        if runs == 1:
            break
    assert kill_at > 60


def test_a_commit_that_was_cut_in_its_middle_is_cut_off(tmp_path: Path) -> None:
    """Half of its lines are there; none was acknowledged, and all come again."""
    wanted = replace(spec(tmp_path), keys_max=10)
    writer = ArchiveWriter(wanted)
    assert writer.once is not None
    writer.once.open()
    writer.commit([message(number) for number in range(3)])
    writer.commit([message(number) for number in range(3, 6)])
    writer.abandon()
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(part.read_bytes()[:-2])
    (result,) = recover(tmp_path)
    assert result.records == 3
    assert result.cut_bytes == 4
    again = ArchiveWriter(wanted)
    assert again.once is not None
    again.once.open()
    done = again.commit([message(number, attempts=2) for number in range(6)])
    assert (done.messages, done.duplicates) == (3, 3)
    close(again)
    assert sorted(bodies_in(tmp_path)) == list(range(6))


def test_a_commit_that_could_not_be_synced_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be read back, and may never reach the disk: when it comes again it is written again."""
    wanted = replace(spec(tmp_path), keys_max=10)
    writer = ArchiveWriter(wanted)
    assert writer.once is not None
    writer.once.open()
    writer.commit([message(1)])

    def fails(*_: object) -> None:
        raise StorageError("sync", tmp_path, OSError(5, "Input/output error"))

    with monkeypatch.context() as broken:
        broken.setattr(durable, "sync_data", fails)
        broken.setattr(durable, "truncate", fails)
        with pytest.raises(StorageError):
            writer.commit([message(2)])
    writer.abandon()
    (result,) = recover(tmp_path)
    assert result.records == 2
    again = ArchiveWriter(wanted)
    assert again.once is not None
    again.once.open()
    done = again.commit([message(1, attempts=2), message(2, attempts=2)])
    assert (done.messages, done.duplicates) == (1, 1)
    close(again)


def started(wanted: ArchiveSpec) -> tuple[ArchiveWriter, OnceOnly]:
    writer = ArchiveWriter(wanted)
    assert writer.once is not None
    writer.once.open()
    return writer, writer.once


def killed(writer: ArchiveWriter) -> None:
    """What the kernel does: its descriptors are closed, and nothing else."""
    assert writer.once is not None
    assert writer.once._file is not None
    for file in writer._files:
        os.close(file.fd)
        os.close(file.claim._fd)
    os.close(writer.once._file._fd)


def in_next_run(wanted: ArchiveSpec, number: int) -> list[int]:
    """What stands in the archive when nsqd delivers one again to the next run."""
    assert not any(result.failed for result in recover(wanted.work_dir))
    writer, _ = started(wanted)
    writer.commit([message(number, attempts=2)])
    close(writer)
    return sorted(bodies_in(wanted.output_dir))


@pytest.mark.parametrize("ends_by", ["close", "kill"])
@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_a_commit_that_failed_before_its_file_was_sealed(
    record_format: str,
    compression: str,
    ends_by: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What seals the file stands where the commit would have stood, and may be as long."""
    wanted = replace(spec(tmp_path, record_format, compression), keys_max=10)
    writer, _ = started(wanted)
    for number in range(30):
        writer.commit([message(number)])
    FailingOs(0, only={"fdatasync"}).install(monkeypatch)
    with pytest.raises(StorageError):
        writer.commit([message(30)])
    if ends_by == "close":
        close(writer)
        writer.abandon()
    else:
        for file in writer._files:
            file.seal()
        killed(writer)
    assert in_next_run(wanted, 30) == list(range(31))


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_what_a_failed_commit_left_is_not_taken_for_the_next(
    record_format: str, compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be cut back, and is as long as the one that was to take its place."""
    wanted = replace(spec(tmp_path, record_format, compression), keys_max=10)
    writer, _ = started(wanted)
    writer.commit([message(10)])
    failing = FailingOs(0, failures=9, only={"fdatasync", "ftruncate"})
    failing.install(monkeypatch)
    for number in (11, 12):
        with pytest.raises(StorageError):
            writer.commit([message(number)])
    failing.heal()
    killed(writer)
    assert 12 in in_next_run(wanted, 12)


def test_a_file_that_cannot_be_published_when_the_next_run_begins(tmp_path: Path) -> None:
    """Its folder is not mounted: the topic goes on, and knows what is in it."""
    output, work = tmp_path / "output", tmp_path / "work"
    wanted = replace(spec(output, "lines", "zstd", work_dir=work), keys_max=10)
    output.mkdir()
    writer, _ = started(wanted)
    writer.commit([message(1)])
    writer.commit([message(2)])
    killed(writer)
    output.rename(tmp_path / "elsewhere")
    for _ in range(2):
        assert [result.failed for result in recover(work)] == [True]
    again, _ = started(wanted)
    done = again.commit([message(2, attempts=2), message(3)])
    assert (done.messages, done.duplicates) == (1, 1)
    again.abandon()
    (tmp_path / "elsewhere").rename(output)
    assert not any(result.failed for result in recover(work))
    assert sorted(bodies_in(output)) == [1, 2, 3]


def test_recovery_that_failed_after_it_found_a_cut_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second try cuts it, too, though the key file was told by the first."""
    wanted = replace(spec(tmp_path), keys_max=10)
    writer, _ = started(wanted)
    writer.commit([message(number) for number in range(3)])
    writer.commit([message(number) for number in range(3, 6)])
    killed(writer)
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(part.read_bytes()[:-2])
    failing = FailingOs(1, only={"ftruncate"})  # the first is that of the claim
    with monkeypatch.context() as while_failing:
        failing.install(while_failing)
        assert [result.failed for result in recover(tmp_path)] == [True]
    assert in_next_run(wanted, 3) == [0, 1, 2, 3]


def test_a_commit_that_fails_again_and_again_uses_up_no_watch(tmp_path: Path) -> None:
    once = opened(tmp_path)
    commit(once, message(1), message(2))
    once.may_come_again(NSQD, None)
    many = Messages([message(number).payloads[0] for number in range(10, 2010)], nsqd=NSQD)
    for _ in range(20):
        once.new_of([many])
    assert commit(once, message(1), message(3)) == [3]


def test_what_an_nsqd_got_last_is_remembered_beside_many_others(tmp_path: Path) -> None:
    """A thousand nsqds share one bound, and a commit of all of them does not look at all for each."""
    once = opened(tmp_path, keys_max=2500)
    many = Keys(NSQD, b"".join([b"%016x" % number for number in range(2000)]), bytes(16_000))
    began_s = time.process_time()
    for round_ in range(12):
        few = [
            Keys(f"n{nsqd}:1", b"%016x" % (round_ * 10 + at), bytes(8))
            for at in range(2)
            for nsqd in range(1000)
        ]
        once.committed(few)
        if round_ == 10:
            once.committed([many])
    assert time.process_time() - began_s < 1
    assert once._recent_count == sum(recent.count for recent in once._recent.values()) <= 5000
    assert once._recent[NSQD].count == 2000


def test_very_much_that_may_come_again_is_forgotten_in_time(tmp_path: Path) -> None:
    """A hundred thousand keys took seconds, and twice as many four times as long."""
    once = opened(tmp_path, keys_max=100_000)
    ids = b"".join([b"%016x" % number for number in range(100_000)])
    once.committed([Keys(NSQD, ids, bytes(8 * 100_000))])
    began_s = time.process_time()
    once.may_come_again(NSQD, None)
    assert time.process_time() - began_s < 1
    assert once.forgotten == 90_000
    assert len(once._awaited[NSQD]) == 10_000
    assert b"%016x" % 99_999 in once._awaited[NSQD]


def test_a_failed_commit_is_noted_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two notes a power cut may leave the first one alone: that of the failure is synced."""
    wanted = replace(spec(tmp_path), keys_max=10)
    writer, _ = started(wanted)
    writer.commit([message(1)])
    FailingOs(0, only={"fdatasync"}).install(monkeypatch)
    synced: list[Path] = []
    real = durable.sync_data

    def sync(fd: int, path: Path) -> None:
        real(fd, path)
        synced.append(path)

    monkeypatch.setattr(durable, "sync_data", sync)
    with pytest.raises(StorageError):
        writer.commit([message(2)])
    assert writer.once is not None
    assert writer.once._file is not None
    assert synced == [writer.once._file.path], "that of the file failed"
    writer.abandon()


def test_a_file_that_cannot_be_read_when_the_next_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of it is not thrown away: the run after that recovers it."""
    wanted = replace(spec(tmp_path), keys_max=10)
    writer, _ = started(wanted)
    writer.commit([message(1)])
    killed(writer)

    def fails(*_: object) -> None:
        raise StorageError("read", tmp_path, OSError(5, "Input/output error"))

    with monkeypatch.context() as broken:
        broken.setattr(recovery, "survey", fails)
        assert [result.failed for result in recover(tmp_path)] == [True]
        between, _ = started(wanted)
        between.abandon()
    assert in_next_run(wanted, 1) == [1]


def test_a_run_that_begins_while_another_process_reads_what_was_left(tmp_path: Path) -> None:
    """Of a large file that takes long; the other is `nsqtools spool upload`, or a second archiver."""
    wanted = replace(spec(tmp_path), keys_max=10)
    writer, _ = started(wanted)
    writer.commit([message(1)])
    killed(writer)
    begins_meanwhile: list[ArchiveWriter] = []

    def begin(_: object) -> None:
        next_run = ArchiveWriter(wanted)
        begins_meanwhile.append(next_run)
        assert next_run.once is not None
        with pytest.raises(StorageError, match="are being finished"):
            next_run.once.open()

    assert [result.failed for result in recover(tmp_path, begun=begin)] == [False]
    (next_run,) = begins_meanwhile
    assert next_run.once is not None
    next_run.once.open()
    done = next_run.commit([message(1, attempts=2), message(2)])
    assert (done.messages, done.duplicates) == (1, 1)
    close(next_run)
    assert sorted(bodies_in(tmp_path)) == [1, 2]


def test_payload_helper_and_messages_agree() -> None:
    assert Messages([payload(3, b"x")]).times == (payload(3, b"x"))[:8]
