"""What the pipeline does with an output's answers, whatever the output: FIN, hold, REQ, refuse."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from tests.pipeline.helpers import CHANNEL, publish, running, stats, until_settled, until_stats
from tests.support.clients import consumer_options, until
from tests.support.peer import Peer, frame, message, message_id

from nsqtools.client.connection import Connection
from nsqtools.errors import ArchiveError, StorageError
from nsqtools.outputs.contract import DONE, Again, Answer, Feeding, Refused
from nsqtools.pipeline import delivery as delivery_module
from nsqtools.pipeline import topic as topic_module
from nsqtools.pipeline.topic import TopicPipeline, TopicSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.support.nsqd import Nsqd, StartNsqd

    from nsqtools.outputs.contract import Output
    from nsqtools.wire.messages import Messages

TEN = [b"%d" % number for number in range(10)]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_module, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(topic_module, "RETRY_MAX_S", 0.02)


class ScriptedOutput:
    """Answers by a function of the bodies; everything it got is kept."""

    def __init__(
        self,
        answer: Callable[[list[bytes]], Answer | Sequence[Answer]] = lambda _: DONE,
        feeding: Feeding | None = None,
    ) -> None:
        self.feeding = feeding or Feeding(wait_s=0.02)
        self.got: list[list[bytes]] = []
        self.under_way = self.most_under_way = 0
        self.events: list[str] = []
        self.doubts: list[tuple[str, bytes | None]] = []
        self.delay_s = 0.0
        self._answer = answer

    def counts(self) -> Mapping[str, int]:
        return {"got": len(self.got)}

    def trouble(self) -> str:
        return ""

    async def open(self) -> None:
        self.events.append("open")

    async def deliver(self, messages: Sequence[Messages]) -> Answer | Sequence[Answer]:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        bodies = [body for each in messages for body in each.bodies]
        self.got.append(bodies)
        await asyncio.sleep(self.delay_s)
        self.under_way -= 1
        return self._answer(bodies)

    def may_come_again(self, nsqd: str, message_id: bytes | None) -> None:
        self.doubts.append((nsqd, message_id))

    def rotate(self) -> None:
        self.events.append("rotate")

    async def close(self) -> None:
        self.events.append("close")

    def hurry(self) -> None:
        pass

    async def abandon(self) -> None:
        self.events.append("abandon")


def pipeline_of(nsqd: Nsqd, output: Output, **settings: str) -> TopicPipeline:
    spec = TopicSpec(
        topic="t",
        channel=CHANNEL,
        consumer=consumer_options(100, **settings),
        nsqd_addresses=(nsqd.tcp_address,),
    )
    return TopicPipeline(spec, output)


async def consumed(nsqd: Nsqd) -> None:
    await until_stats(nsqd, lambda now: bool(now.get("client_count")))


async def test_done_is_fin(nsqd: Nsqd) -> None:
    output = ScriptedOutput()
    pipeline = pipeline_of(nsqd, output)
    async with running(pipeline):
        await consumed(nsqd)
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
        pipeline.rotate()
    assert sorted(body for bodies in output.got for body in bodies) == TEN
    assert output.events == ["open", "rotate", "close"]
    assert pipeline.counts.messages == 10
    assert pipeline.counts.body_bytes == 10
    assert pipeline.totals()["got"] == len(output.got)


@pytest.mark.parametrize("at_once", [True, False])
async def test_answers_for_many_do_not_wait_for_the_end_of_the_turn(
    at_once: bool, nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    settles, sends, is_settling = TopicPipeline._settle, Connection.send, False
    sent: list[bool] = []

    def settling(pipeline: TopicPipeline, *arguments: Any) -> None:
        nonlocal is_settling
        is_settling = True
        settles(pipeline, *arguments)
        is_settling = False

    def sending(connection: Connection, data: bytes) -> None:
        if data.startswith(b"FIN"):
            sent.append(is_settling)
        sends(connection, data)

    monkeypatch.setattr(topic_module, "FLUSHED_MESSAGES", 1 if at_once else 1000)
    monkeypatch.setattr(TopicPipeline, "_settle", settling)
    monkeypatch.setattr(Connection, "send", sending)
    async with running(pipeline_of(nsqd, ScriptedOutput())):
        await consumed(nsqd)
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
    assert set(sent) == {at_once}


async def test_each_message_has_its_own_answer(nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even ones are done, 3 comes again and is done then, the other odd ones are refused."""
    monkeypatch.setattr(delivery_module, "REFUSED_DELAY_S", 60.0)
    seen: Counter[bytes] = Counter()

    def answer(bodies: list[bytes]) -> list[Answer]:
        answers: list[Answer] = []
        for body in bodies:
            seen[body] += 1
            if int(body) % 2 == 0 or (body == b"3" and seen[body] == 2):
                answers.append(DONE)
            elif body == b"3":
                answers.append(Again(0.05, "not yet"))
            else:
                answers.append(Refused("odd"))
        return answers

    pipeline = pipeline_of(nsqd, ScriptedOutput(answer))
    async with running(pipeline):
        await consumed(nsqd)
        await publish(nsqd, *TEN)
        await until_stats(
            nsqd, lambda now: (now["deferred_count"], now["in_flight_count"]) == (4, 0)
        )
        now = await stats(nsqd)
        assert now["requeue_count"] == 4, "refused ones are not lost"
        assert now["timeout_count"] == 0
    assert pipeline.counts.messages == 6
    assert pipeline.counts.refused == 4
    assert pipeline.counts.reasons == {"odd": 4}
    assert pipeline.counts.again == 1
    assert seen == {body: 2 if body == b"3" else 1 for body in TEN}


async def test_what_waits_comes_in_time_while_another_delivery_waits_for_messages(
    nsqd: Nsqd,
) -> None:
    """No message comes that would wake it."""
    seen: Counter[bytes] = Counter()

    def answer(bodies: list[bytes]) -> Answer:
        seen.update(bodies)
        return DONE if seen[bodies[0]] == 3 else Again(0.05, "not yet")

    feeding = Feeding(wait_s=0.0, messages_max=1, deliveries_max=4)
    pipeline = pipeline_of(nsqd, ScriptedOutput(answer, feeding))
    async with running(pipeline):
        await consumed(nsqd)
        await publish(nsqd, b"x")
        await until(lambda: seen[b"x"] == 3)
        await until_settled(nsqd, 1)


async def test_what_cannot_go_in_at_the_end_goes_back_at_once_where_that_is_wanted(
    nsqd: Nsqd,
) -> None:
    """Both what was delivered and what was still to be."""
    feeding = Feeding(wait_s=0.0, messages_max=1, deliveries_max=2, gives_back=True)
    output = ScriptedOutput(lambda _: Again(60.0, "an outage", stands=True), feeding)
    pipeline = pipeline_of(nsqd, output)
    async with running(pipeline):
        await consumed(nsqd)
        await publish(nsqd, *TEN)
        await until(lambda: pipeline.trouble)
        began_s = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began_s < 5
    now = await stats(nsqd)
    assert (now["depth"], now["in_flight_count"], now["timeout_count"]) == (10, 0, 0)
    assert output.events == ["open", "close"]


async def test_what_was_not_delivered_at_the_end_goes_back_where_that_is_wanted(
    nsqd: Nsqd,
) -> None:
    """What is under way is finished."""
    feeding = Feeding(wait_s=0.0, messages_max=1, deliveries_max=2, gives_back=True)
    output = ScriptedOutput(feeding=feeding)
    output.delay_s = 0.3
    pipeline = pipeline_of(nsqd, output)
    async with running(pipeline):
        await consumed(nsqd)
        await publish(nsqd, *TEN)
        await until(lambda: output.under_way == 2 and pipeline.consumer.in_flight == 10)
    assert len(output.got) == pipeline.counts.messages == 2
    assert (await stats(nsqd))["depth"] == 8


async def test_many_deliveries_are_under_way_and_none_too_many(nsqd: Nsqd) -> None:
    output = ScriptedOutput(feeding=Feeding(wait_s=0.02, messages_max=1, deliveries_max=4))
    output.delay_s = 0.02
    pipeline = pipeline_of(nsqd, output)
    async with running(pipeline):
        await consumed(nsqd)
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
    assert output.most_under_way == 4
    assert all(len(bodies) == 1 for bodies in output.got)
    assert sorted(body for bodies in output.got for body in bodies) == TEN


async def test_one_that_waits_for_its_time_holds_no_other(nsqd: Nsqd) -> None:
    tried: list[bytes] = []

    def answer(bodies: list[bytes]) -> Answer:
        tried.extend(bodies)
        return Again(0.3, "busy") if bodies == [b"0"] and tried.count(b"0") < 2 else DONE

    output = ScriptedOutput(answer, Feeding(wait_s=0.02, messages_max=1))
    pipeline = pipeline_of(nsqd, output)
    async with running(pipeline):
        await consumed(nsqd)
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
    assert sorted(tried) == sorted([*TEN, b"0"])
    assert tried[-1] == b"0", "the others went before it"
    assert (await stats(nsqd))["requeue_count"] == 0, "it was held, not requeued"


async def test_an_output_that_stands_still_is_asked_again_with_the_same(
    start_nsqd: StartNsqd,
) -> None:
    nsqd = await start_nsqd(msg_timeout="1s")
    works = asyncio.Event()

    def answer(_: list[bytes]) -> Answer:
        return DONE if works.is_set() else Again(0.02, "the disk is full", stands=True)

    output = ScriptedOutput(answer)
    pipeline = pipeline_of(nsqd, output)
    async with running(pipeline):
        await consumed(nsqd)
        await publish(nsqd, *TEN)
        await until(lambda: len(output.got) > 3)
        assert pipeline.trouble == "the disk is full"
        await publish(nsqd, b"comes later")
        await asyncio.sleep(1.3)  # longer than the message timeout
        now = await stats(nsqd)
        assert (now["in_flight_count"], now["depth"], now["timeout_count"]) == (10, 1, 0)
        works.set()
        await until_settled(nsqd, 11)
        assert not pipeline.trouble
    assert pipeline.counts.messages == 11


async def test_what_an_output_raises_is_told_and_tried_again(
    nsqd: Nsqd, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter([StorageError("write", "/x", OSError(28, "full")), ZeroDivisionError("bug")])

    def answer(_: list[bytes]) -> Answer:
        if failure := next(failures, None):
            raise failure
        return DONE

    pipeline = pipeline_of(nsqd, ScriptedOutput(answer))
    async with running(pipeline):
        await consumed(nsqd)
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
    assert "full" in caplog.text
    assert [r.exc_info[0] for r in caplog.records if r.exc_info] == [ZeroDivisionError]


async def test_an_output_that_does_not_open_is_opened_again(nsqd: Nsqd) -> None:
    class Reluctant(ScriptedOutput):
        async def open(self) -> None:
            self.events.append("open")
            if len(self.events) < 3:
                raise ArchiveError("a link that leads elsewhere")

    output = Reluctant()
    pipeline = pipeline_of(nsqd, output)
    async with running(pipeline):
        await consumed(nsqd)
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
    assert output.events == ["open"] * 3 + ["close"]


async def test_a_topic_whose_output_never_opens_can_be_stopped(nsqd: Nsqd) -> None:
    class Closed(ScriptedOutput):
        async def open(self) -> None:
            raise ArchiveError("no")

    pipeline = pipeline_of(nsqd, Closed())
    async with running(pipeline):
        await until(lambda: pipeline.trouble == "no")


async def test_wrong_answers_of_an_output_lose_nothing(nsqd: Nsqd) -> None:
    """Fewer answers than messages are a fault of the output, and acknowledge nothing."""
    faulty = iter([True])

    def answer(bodies: list[bytes]) -> Answer | list[Answer]:
        return [DONE] * (len(bodies) - 1) if next(faulty, False) else DONE

    pipeline = pipeline_of(nsqd, ScriptedOutput(answer))
    async with running(pipeline):
        await consumed(nsqd)
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
    assert pipeline.counts.messages == 10


async def test_what_comes_again_by_a_lost_connection_is_not_delivered_twice(
    start_nsqd: StartNsqd,
) -> None:
    """A restart of nsqd while the output stands still: what it held comes again, and only then."""
    nsqd = await start_nsqd()
    works = asyncio.Event()
    done: list[bytes] = []

    def answer(bodies: list[bytes]) -> Answer:
        if not works.is_set():
            return Again(0.02, "hung", stands=True)
        done.extend(bodies)
        return DONE

    output = ScriptedOutput(answer)
    pipeline = pipeline_of(nsqd, output, lookupd_poll_interval="50ms")
    async with running(pipeline):
        await consumed(nsqd)
        await publish(nsqd, *TEN)
        await until(lambda: len(output.got) > 2)
        for connection in list(pipeline.consumer._subscriptions):
            connection.abort(StorageError("test", "cut", OSError(0, "cut")))
        await until(lambda: pipeline.counts.disconnected == 10)
        await consumed(nsqd)
        works.set()
        await until_stats(
            nsqd, lambda now: (now["depth"], now["in_flight_count"], len(done)) == (0, 0, 10)
        )
    assert sorted(done) == TEN
    assert pipeline.consumer.held_bytes == 0


async def test_the_rest_is_given_back_at_once_when_the_end_is_cut(nsqd: Nsqd) -> None:
    output = ScriptedOutput(lambda _: Again(60.0, "hung", stands=True))
    pipeline = pipeline_of(nsqd, output)
    task = asyncio.create_task(pipeline.run())
    await consumed(nsqd)
    await publish(nsqd, *TEN)
    await until(lambda: bool(output.got))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_stats(nsqd, lambda now: (now["depth"], now["requeue_count"]) == (10, 10))
    assert output.events == ["open", "abandon"]
    assert pipeline.counts.requeued == 10


@pytest.mark.parametrize("gives_back", [True, False])
async def test_what_stands_for_long_goes_back_before_nsqd_takes_it(
    start_nsqd: StartNsqd, *, gives_back: bool
) -> None:
    """What was not taken yet, too."""
    nsqd = await start_nsqd(msg_timeout="1s", max_msg_timeout="2s")
    feeding = Feeding(wait_s=0.02, messages_max=2, deliveries_max=2, gives_back=gives_back)
    output = ScriptedOutput(lambda _: Again(60.0, "hung", stands=True), feeding)
    pipeline = pipeline_of(nsqd, output)
    task = asyncio.create_task(pipeline.run())
    await consumed(nsqd)
    await publish(nsqd, *TEN)
    await until(lambda: bool(output.got))
    await until_stats(nsqd, lambda now: now["requeue_count"] >= 10)
    assert (await stats(nsqd))["timeout_count"] == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_delivery_of_which_nothing_is_done_is_no_last_one(nsqd: Nsqd) -> None:
    output = ScriptedOutput(lambda bodies: DONE if bodies == [b"good"] else Refused("bad"))
    pipeline = pipeline_of(nsqd, output)
    async with running(pipeline):
        await consumed(nsqd)
        await publish(nsqd, *TEN)
        await until_stats(nsqd, lambda now: now["deferred_count"] == 10)
        assert (pipeline.last_delivery_time_s, pipeline.lag_s) == (0.0, 0.0)
        await publish(nsqd, b"good")
        await until(lambda: pipeline.last_delivery_time_s > 0)


async def test_a_topic_has_as_many_workers_as_it_needed(nsqd: Nsqd) -> None:
    """A thousand quiet topics are no hundred thousand tasks."""
    output = ScriptedOutput(feeding=Feeding(wait_s=0.0, messages_max=1, deliveries_max=100))
    pipeline = pipeline_of(nsqd, output)
    before = len(asyncio.all_tasks())
    async with running(pipeline):
        await consumed(nsqd)
        assert len(asyncio.all_tasks()) - before < 20
        output.delay_s = 0.05
        await publish(nsqd, *[b"%d" % number for number in range(300)])
        await until_settled(nsqd, 300)
    assert output.most_under_way == 100


async def test_a_stand_among_many_answers_is_a_stand(nsqd: Nsqd) -> None:
    def answer(bodies: list[bytes]) -> list[Answer]:
        return [Again(60.0, "an outage", stands=True) if b == b"3" else DONE for b in bodies]

    output = ScriptedOutput(answer)
    pipeline = pipeline_of(nsqd, output)
    task = asyncio.create_task(pipeline.run())
    await consumed(nsqd)
    await publish(nsqd, *TEN)
    await until(lambda: pipeline.trouble == "an outage")
    await publish(nsqd, b"later")
    await until_stats(nsqd, lambda now: (now["depth"], now["in_flight_count"]) == (1, 1))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_that_leaks_from_an_output_is_a_failure(
    nsqd: Nsqd, caplog: pytest.LogCaptureFixture
) -> None:
    leaks = iter([True])

    def answer(_: list[bytes]) -> Answer:
        if next(leaks, False):
            raise asyncio.CancelledError
        return DONE

    pipeline = pipeline_of(nsqd, ScriptedOutput(answer))
    async with running(pipeline):
        await consumed(nsqd)
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
    assert "something inside was cancelled" in caplog.text


async def test_at_the_end_an_output_that_stands_is_asked_again_soon(
    nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end has a deadline, and the disk has room again."""
    monkeypatch.setattr(topic_module, "STAND_AT_END_S", 0.05)
    output = ScriptedOutput(lambda _: Again(60.0, "full", stands=True))
    pipeline = pipeline_of(nsqd, output)
    async with running(pipeline):
        await consumed(nsqd)
        await publish(nsqd, *TEN)
        await until(lambda: pipeline.trouble == "full")
        output._answer = lambda _: DONE
    assert len(output.got) == 2
    assert (await stats(nsqd))["depth"] == 0


async def test_an_output_hears_what_may_come_again() -> None:
    output = ScriptedOutput()
    async with Peer() as peer, asyncio.TaskGroup() as group:
        options = consumer_options(10, lookupd_poll_interval="10ms")
        spec = TopicSpec(topic="t", channel="c", consumer=options, nsqd_addresses=(peer.address,))
        task = group.create_task(TopicPipeline(spec, output).run())
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 10")
        nsqd.send(message(1))
        await until(lambda: output.got)
        nsqd.send(frame(1, b"E_FIN_FAILED FIN " + message_id(1) + b" failed ID not in flight"))
        await until(lambda: output.doubts)
        nsqd.cut()
        await until(lambda: len(output.doubts) == 2)
        task.cancel()
    assert output.doubts == [(peer.address, message_id(1)), (peer.address, None)]


async def test_faults_in_counting_and_rotating_stop_nothing(nsqd: Nsqd) -> None:
    class Faulty(ScriptedOutput):
        def counts(self) -> Mapping[str, int]:
            raise ZeroDivisionError

        def trouble(self) -> str:
            raise ZeroDivisionError

        def may_come_again(self, nsqd: str, message_id: bytes | None) -> None:
            raise ZeroDivisionError

        def rotate(self) -> None:
            raise ZeroDivisionError

    pipeline = pipeline_of(nsqd, Faulty())
    async with running(pipeline):
        await consumed(nsqd)
        pipeline.rotate()
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
        assert pipeline.totals()["messages"] == 10
        assert pipeline.output_trouble() == ""


async def test_how_an_output_is_fed_may_change(nsqd: Nsqd) -> None:
    output = ScriptedOutput(feeding=Feeding(wait_s=0.0, messages_max=3))
    pipeline = pipeline_of(nsqd, output)
    output.delay_s = 0.02
    async with running(pipeline):
        await consumed(nsqd)
        await publish(nsqd, *TEN)
        await until(lambda: len(output.got) == 1)
        output.feeding = Feeding(wait_s=0.0)
        await until_settled(nsqd, 10)
    assert sorted(body for bodies in output.got for body in bodies) == TEN


async def test_what_waits_and_cannot_be_settled_any_more_is_forgotten(nsqd: Nsqd) -> None:
    output = ScriptedOutput(lambda _: Again(600.0, "later"), Feeding(wait_s=0.0, messages_max=1))
    pipeline = pipeline_of(nsqd, output, lookupd_poll_interval="50ms")
    task = asyncio.create_task(pipeline.run())
    await consumed(nsqd)
    await publish(nsqd, *TEN)
    await until(lambda: len(pipeline._waiting) == 10)
    for connection in list(pipeline.consumer._subscriptions):
        connection.abort(StorageError("test", "cut", OSError(0, "cut")))
    await until(lambda: pipeline.counts.disconnected == 10)
    await until(lambda: len(output.got) == 20)
    assert len(pipeline._waiting) == 10
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
