"""Objects without a spool: what ends one, and that nothing is acknowledged before it is there."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import pytest
from tests.archive.helpers import batch_of
from tests.support.clients import until

from nsqtools import durable
from nsqtools.archive.destination import About, FileFacts, FolderDestination
from nsqtools.archive.object_names import ObjectNaming
from nsqtools.archive.reader import open_archive
from nsqtools.archive.rotation import RotationPolicy
from nsqtools.archive.streaming import StreamSpec
from nsqtools.errors import StoreError
from nsqtools.outputs.contract import DONE, Again
from nsqtools.outputs.s3 import direct as module
from nsqtools.outputs.s3.direct import DirectOutput, DirectSpec
from nsqtools.outputs.workers import Workers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from nsqtools.outputs.contract import Answer

WINDOW = 100
NEVER_S = 3600.0


class Failing(FolderDestination):
    """A store that fails as often as it is told to, then takes what comes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.failures = 0
        self.tries = 0

    def place(self, source: Path, name: str, facts: FileFacts, about: About | None = None) -> None:
        self.tries += 1
        if self.failures:
            self.failures -= 1
            raise StoreError("put", name, "503 SlowDown", is_passing=True)
        super().place(source, name, facts, about)


@pytest.fixture
def store(tmp_path: Path) -> Failing:
    return Failing(tmp_path / "store")


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close()


@pytest.fixture
async def make(
    store: Failing, scratch: Path, workers: Workers
) -> AsyncIterator[Callable[..., DirectOutput]]:
    made: list[DirectOutput] = []

    def make_one(*, window: int = WINDOW, **rules: float) -> DirectOutput:
        rotation = RotationPolicy(**{"rotate_interval_s": NEVER_S, **rules})  # type: ignore[arg-type]
        naming = ObjectNaming(host="host", record_format="lines", key_format="<TOPIC>.<REV>.<EXT>")
        spec = DirectSpec(
            stream=StreamSpec(
                topic="topic",
                channel="channel",
                host="host",
                record_format="lines",
                compression="none",
            ),
            about=About(
                unique="",
                topic="topic",
                channel="channel",
                host="host",
                record_format="lines",
                compression="none",
            ),
            manifest=False,
            naming=naming.format_for("topic", "none", revision_needed=True, channel="channel"),
            rotation=rotation,
            window=window,
            sync_interval_s=30.0,
            scratch_dir=scratch,
        )
        made.append(DirectOutput(spec, workers, store))
        return made[-1]

    yield make_one
    for output in made:
        store.failures = 0
        await output.close()


@pytest.fixture
def objects(tmp_path: Path) -> Callable[[], list[list[bytes]]]:
    """What is in the store, object by object."""

    def read() -> list[list[bytes]]:
        found = []
        for path in sorted((tmp_path / "store").rglob("*.log")):
            with open_archive(path) as archive:
                found.append([body for batch in archive.batches() for body in batch.bodies])
        return found

    return read


def delivered(output: DirectOutput, *bodies: bytes) -> asyncio.Task[Answer]:
    batch = batch_of(bodies, first=secrets.randbelow(1 << 20))
    return asyncio.ensure_future(output.deliver([batch]))


async def is_waiting(task: asyncio.Task[Answer]) -> bool:
    for _ in range(20):
        await asyncio.sleep(0)
    return not task.done()


def test_it_says_how_long_it_gathers(make: Callable[..., DirectOutput]) -> None:
    """Or its health would be bad for most of each minute."""
    assert make(rotate_interval_s=600.0).feeding.holds_s == 600.0
    assert make(rotate_interval_s=0.0).feeding.holds_s == module.INTERVAL_S


async def test_messages_gather_until_there_are_enough_records(
    make: Callable[..., DirectOutput], objects: Callable[[], list[list[bytes]]], scratch: Path
) -> None:
    output = make(rotate_records=3)
    first = delivered(output, b"one", b"two")
    assert await is_waiting(first)
    assert objects() == []
    second = delivered(output, b"three")
    assert [await first, await second] == [DONE, DONE]
    assert objects() == [[b"one", b"two", b"three"]]
    assert list(scratch.iterdir()) == []
    assert {"files": 1, "failures": 0}.items() <= output.counts().items()


async def test_messages_gather_until_they_are_large_enough(
    make: Callable[..., DirectOutput], objects: Callable[[], list[list[bytes]]]
) -> None:
    output = make(rotate_size_bytes=1000)
    first = delivered(output, b"x" * 600)
    assert await is_waiting(first)
    assert await delivered(output, b"y" * 600) == await first == DONE
    assert [len(each) for each in objects()] == [2]


async def test_the_oldest_message_waits_no_longer_than_the_interval(
    make: Callable[..., DirectOutput], objects: Callable[[], list[list[bytes]]]
) -> None:
    output = make(rotate_interval_s=0.05)
    assert await delivered(output, b"one") == DONE
    assert objects() == [[b"one"]]


async def test_the_interval_is_a_minute_unless_another_is_set(
    make: Callable[..., DirectOutput], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.INTERVAL_S == 60
    monkeypatch.setattr(module, "INTERVAL_S", 0.05)
    assert await delivered(make(rotate_interval_s=0.0), b"one") == DONE


async def test_an_object_ends_when_it_has_become_quiet(
    make: Callable[..., DirectOutput], objects: Callable[[], list[list[bytes]]]
) -> None:
    output = make(rotate_idle_s=0.2)
    first, second = delivered(output, b"one"), delivered(output, b"two")
    assert await is_waiting(second)
    assert [await first, await second] == [DONE, DONE]
    assert objects() == [[b"one", b"two"]]


async def test_much_that_has_become_quiet_may_be_all_that_can_be_held(
    make: Callable[..., DirectOutput], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No --rotate-idle is set: it would wait for its interval, while nothing more can come."""
    monkeypatch.setattr(module, "_QUIET_BYTES", 1000)
    monkeypatch.setattr(module, "_QUIET_S", 0.05)
    output = make()
    small = delivered(output, b"x")
    assert await is_waiting(small)
    assert await delivered(output, b"x" * 1000) == await small == DONE


async def test_a_full_window_is_an_object(
    make: Callable[..., DirectOutput], objects: Callable[[], list[list[bytes]]]
) -> None:
    """Nearly full: what is missing may be with another connection, and never come."""
    output = make(window=10)
    first = delivered(output, *(b"%d" % number for number in range(8)))
    assert await is_waiting(first)
    assert await delivered(output, b"8") == await first == DONE
    assert [len(each) for each in objects()] == [9]


async def test_a_store_that_fails_is_tried_again_and_nothing_is_answered_meanwhile(
    make: Callable[..., DirectOutput], store: Failing, objects: Callable[[], list[list[bytes]]]
) -> None:
    store.failures = 2
    output = make(rotate_records=1)
    answer = delivered(output, b"one")
    await until(lambda: store.tries == 1 and "SlowDown" in output.trouble())
    assert not answer.done()
    assert await answer == DONE
    assert objects() == [[b"one"]]
    assert output.trouble() == ""
    assert {"files": 1, "failures": 2}.items() <= output.counts().items()


async def test_others_gather_while_an_object_is_on_its_way(
    make: Callable[..., DirectOutput], store: Failing, objects: Callable[[], list[list[bytes]]]
) -> None:
    store.failures = 1
    output = make(rotate_records=2)
    first = delivered(output, b"1", b"2")
    await until(lambda: store.tries == 1)
    second = delivered(output, b"3")
    assert await is_waiting(second)
    output.rotate()
    assert [await first, await second] == [DONE, DONE]
    assert sorted(objects()) == [[b"1", b"2"], [b"3"]]


async def test_a_name_that_is_taken_gets_the_next_revision(
    make: Callable[..., DirectOutput], tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "topic.000000.log").write_bytes(b"of another\n")
    assert await delivered(make(rotate_records=1), b"mine") == DONE
    assert (tmp_path / "store" / "topic.000000.log").read_bytes() == b"of another\n"
    assert (tmp_path / "store" / "topic.000001.log").read_bytes() == b"mine\n"


async def test_a_rotation_of_nothing_makes_no_object(
    make: Callable[..., DirectOutput], store: Failing
) -> None:
    output = make()
    output.rotate()
    await output.close()
    assert store.tries == 0


async def test_the_end_uploads_what_is_there_and_takes_no_more(
    make: Callable[..., DirectOutput], objects: Callable[[], list[list[bytes]]]
) -> None:
    output = make()
    answer = delivered(output, b"one")
    assert await is_waiting(answer)
    output.hurry()
    assert isinstance(await output.deliver([batch_of([b"late"])]), Again)
    assert await answer == DONE
    await output.close()
    assert objects() == [[b"one"]]


async def test_the_end_does_not_wait_for_a_store_that_is_away(
    make: Callable[..., DirectOutput], store: Failing, scratch: Path
) -> None:
    """The messages go back to nsqd."""
    store.failures = 1000
    output = make(rotate_records=1)
    answer = delivered(output, b"one")
    await until(lambda: store.tries == 1)
    await output.close()
    assert isinstance(await answer, Again)
    assert store.tries <= 3
    assert list(scratch.iterdir()) == []


async def test_an_end_that_comes_in_a_long_wait_ends_that(
    make: Callable[..., DirectOutput], store: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is long away is tried twice a minute: the end would be cut short."""
    store.failures = 1000
    monkeypatch.setattr("nsqtools.outputs.trouble.RETRY_FIRST_S", NEVER_S)
    monkeypatch.setattr("nsqtools.outputs.trouble.RETRY_MAX_S", NEVER_S)
    output = make(rotate_records=1)
    answer = delivered(output, b"one")
    await until(lambda: store.tries == 1 and output.trouble() != "")
    async with asyncio.timeout(30):
        await output.close()
    assert isinstance(await answer, Again)
    assert store.tries == 2


async def test_what_nobody_waits_for_is_not_tried_for_ever(
    make: Callable[..., DirectOutput], store: Failing
) -> None:
    """Their connection is lost: they come again, and are uploaded then."""
    store.failures = 1000
    output = make(rotate_records=1)
    answer = delivered(output, b"one")
    await until(lambda: store.tries == 1)
    answer.cancel()
    await output.close()
    assert store.tries <= 3


def test_what_a_killed_run_left_on_the_disk_is_removed(scratch: Path) -> None:
    name = f"{module.SCRATCH_PREFIX}abcd_123{module.SCRATCH_SUFFIX}"
    mine, other = scratch / name, scratch / "other"
    mine.touch()
    other.touch()
    module.remove_dead(scratch)
    assert list(scratch.iterdir()) == [other]
    with mine.open("wb") as file:
        durable.lock_file(file.fileno(), mine)
        module.remove_dead(scratch)
        assert mine.exists()
