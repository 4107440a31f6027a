"""Discovery: asking nsqlookupds where a topic is (spec: lookupd, A3 and A6; client-behaviour, 4.3).

NSQ's client asks one nsqlookupd a round and only the first one at start, so a producer that another
one knows is found minutes late. Here every nsqlookupd is asked at once and independently: what one
answers is used when it comes, and one that is dead, hung or lying delays and hides nothing.

- A 404 TOPIC_NOT_FOUND is an answer: no producers. Any other status, an answer beyond
  ANSWER_BYTES_MAX or one that is no JSON is a failure of that nsqlookupd.
- A producer is known as long as the last good answer of some nsqlookupd lists it. A failure takes
  nothing away.
- Failures in a row are logged once, and so is their end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, urlsplit

from nsqtools.ask import ask, check_status, new_session
from nsqtools.client.discovery import Discovery
from nsqtools.errors import ConnectionFailed, OptionsError, ProtocolError
from nsqtools.options import mask_passwords
from nsqtools.wire.lookup import Answer, parse_names, parse_producers, says_topic_not_found

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine, Sequence

    import aiohttp

LOOKUPD_POLL_INTERVAL_S = 60.0
LOOKUPD_POLL_JITTER = 0.3
LOOKUPD_POLL_TIMEOUT_S = 60.0
# A machine that is off is told from one that is slow long before the whole timeout is over.
CONNECT_TIMEOUT_S = 5.0
# When some have answered, the others of a single question get this long.
STRAGGLERS_S = 2.0
# However often connections close, no nsqlookupd is asked more often than this.
POKE_SPACING_S = 1.0
REDIRECTS_MAX = 3
# How soon one that has not answered yet is asked again; the time doubles up to the poll interval.
FIRST_ANSWER_S = 1.0
_DOUBLINGS_MAX = 10

# Unauthorized and Forbidden.
_WANTS_SECRET = (401, 403)

log = logging.getLogger("nsqtools.lookup")


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupOptions:
    """`lookupd_poll_jitter` is the fraction of the interval by which rounds differ.

    `auth_secret` is sent as a bearer token when it is set, by http only with `auth_plaintext`.
    """

    lookupd_poll_interval_s: float = LOOKUPD_POLL_INTERVAL_S
    lookupd_poll_jitter: float = LOOKUPD_POLL_JITTER
    lookupd_poll_timeout_s: float = LOOKUPD_POLL_TIMEOUT_S
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    stragglers_s: float = STRAGGLERS_S
    poke_spacing_s: float = POKE_SPACING_S
    auth_secret: str = field(default="", repr=False)
    auth_plaintext: bool = False


DEFAULTS = LookupOptions()


@dataclass(frozen=True, slots=True)
class Lookupd:
    """One nsqlookupd; `text` is the address as the user wrote it, without a password."""

    text: str
    parts: SplitResult

    @classmethod
    def parse(cls, text: str) -> Lookupd:
        """Read `host:port` or a URL; raises OptionsError."""
        plain = "://" not in text
        whole, text = f"http://{text}" if plain else text, mask_passwords(text)
        try:
            parts = urlsplit(whole)
            port = parts.port
        except ValueError as error:
            raise OptionsError([f"lookupd address {text!r}: {error}"]) from error
        if parts.scheme not in ("http", "https"):
            raise OptionsError([f"lookupd address {text!r}: scheme must be http or https"])
        if not parts.hostname:
            raise OptionsError([f"lookupd address {text!r}: missing host"])
        if plain and port is None:
            raise OptionsError([f"lookupd address {text!r}: missing port"])
        return cls(text, parts)

    def url(self, endpoint: str, topic: str | None = None) -> str:
        """The URL of `lookup`, `topics` or `channels`.

        A path in the address is that of `/lookup`; the others lie beside it.
        """
        path = self.parts.path
        if path in ("", "/"):
            path = f"/{endpoint}"
        elif endpoint != "lookup":
            path = f"{path.rpartition('/')[0]}/{endpoint}"
        query = self.parts.query
        if topic is not None:
            query = f"{query}&" * bool(query) + f"topic={quote(topic, safe='')}"
        return self.parts._replace(path=path, query=query, fragment="").geturl()


async def _session_in(
    stack: AsyncExitStack, given: aiohttp.ClientSession | None
) -> aiohttp.ClientSession:
    return await stack.enter_async_context(new_session()) if given is None else given


def _tell(failure: ConnectionFailed) -> None:
    log.warning("lookupd failed error=%s", failure)


async def lookup(
    addresses: Sequence[str],
    topic: str,
    *,
    options: LookupOptions = DEFAULTS,
    session: aiohttp.ClientSession | None = None,
) -> set[str]:
    """The `host:port` of every nsqd that has the topic, as all nsqlookupds together know it.

    Waits for the first answer, and then `stragglers_s` for the others. Raises ConnectionFailed when
    none answered, OptionsError for an address that is none. Cancelling leaves nothing behind.
    """
    return await _merge(addresses, _Producers(topic), options, session)


async def http_producers(
    addresses: Sequence[str],
    topic: str,
    *,
    options: LookupOptions = DEFAULTS,
    session: aiohttp.ClientSession | None = None,
) -> set[str]:
    """As `lookup`, for HTTP, of those that say where; nothing is told of what goes wrong."""
    return await _merge(addresses, _HttpProducers(topic), options, session, lambda _: None)


async def topics(
    addresses: Sequence[str],
    *,
    options: LookupOptions = DEFAULTS,
    session: aiohttp.ClientSession | None = None,
    on_failure: Callable[[ConnectionFailed], None] = _tell,
) -> set[str]:
    """The names of all topics that any nsqlookupd knows; otherwise as `lookup`. `on_failure` gets what
    there is to say of each that does not answer."""
    return await _merge(addresses, _Topics(), options, session, on_failure)


@dataclass(frozen=True, slots=True)
class _Producers:
    topic: str

    def url(self, lookupd: Lookupd) -> str:
        return lookupd.url("lookup", self.topic)

    def parse(self, status: int, body: bytes) -> Answer:
        if status == 404 and says_topic_not_found(body):
            return Answer()
        check_status(status)
        return parse_producers(body)


@dataclass(frozen=True, slots=True)
class _HttpProducers(_Producers):
    def parse(self, status: int, body: bytes) -> Answer:
        if status == 404 and says_topic_not_found(body):
            return Answer()
        check_status(status)
        return replace(parse_producers(body, "http_port"), refused=())


@dataclass(frozen=True, slots=True)
class _Topics:
    def url(self, lookupd: Lookupd) -> str:
        return lookupd.url("topics")

    def parse(self, status: int, body: bytes) -> Answer:
        check_status(status)
        return parse_names(body, "topics")


_Question = _Producers | _Topics


async def _answer(
    lookupd: Lookupd, question: _Question, options: LookupOptions, session: aiohttp.ClientSession
) -> Answer:
    """One nsqlookupd's answer; whatever goes wrong is a ConnectionFailed with its address."""
    may_tell = options.auth_plaintext or lookupd.parts.scheme == "https"
    status, body = await ask(
        session,
        question.url(lookupd),
        lookupd.text,
        connect_timeout_s=options.connect_timeout_s,
        timeout_s=options.lookupd_poll_timeout_s,
        redirects_max=REDIRECTS_MAX,
        secret=options.auth_secret if may_tell else "",
    )
    try:
        return question.parse(status, body)
    except ProtocolError as error:
        reason = error.description
        if status in _WANTS_SECRET and options.auth_secret and not may_tell:
            reason += "; the secret was not sent without TLS: use https, or --auth-plaintext"
        raise ConnectionFailed(lookupd.text, reason) from error


async def _merge(
    addresses: Sequence[str],
    question: _Question,
    options: LookupOptions,
    session: aiohttp.ClientSession | None,
    on_failure: Callable[[ConnectionFailed], None] = _tell,
) -> set[str]:
    lookupds = [Lookupd.parse(address) for address in addresses]
    failures: list[ConnectionFailed] = []

    async def answer_of(lookupd: Lookupd) -> Answer | None:
        try:
            return await _answer(lookupd, question, options, shared)
        except ConnectionFailed as error:
            failures.append(error)
            on_failure(error)
            return None

    async with AsyncExitStack() as stack:
        shared = await _session_in(stack, session)
        answers = await _collect([answer_of(each) for each in lookupds], options.stragglers_s)
    if lookupds and not answers:
        raise ConnectionFailed("no nsqlookupd answered", "; ".join(map(str, failures)))
    for answer in answers:
        _warn_of_refused(answer, "any")
    return {value for answer in answers for value in answer.values}


async def _collect(
    asks: Sequence[Coroutine[None, None, Answer | None]], stragglers_s: float
) -> list[Answer]:
    """The answers that came until `stragglers_s` after the first; all were asked at once."""
    answers: list[Answer] = []
    deadline: float | None = None
    now = asyncio.get_running_loop().time
    async with asyncio.TaskGroup() as group:
        pending = {group.create_task(ask) for ask in asks}
        while pending:
            left_s = None if deadline is None else deadline - now()
            done, pending = await asyncio.wait(
                pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            answers += [answer for task in done if (answer := task.result()) is not None]
            if answers and deadline is None:
                deadline = now() + stragglers_s
            if not done:
                log.warning("lookupd too slow, went on without it count=%d", len(pending))
                for task in pending:
                    task.cancel()
                break
    return answers


def _warn_of_refused(answer: Answer, address: str) -> None:
    if answer.refused:
        log.warning(
            "lookupd entries refused address=%s count=%d first=%s",
            address,
            len(answer.refused),
            answer.refused[0],
        )


class LookupPoller:
    """Keeps asking every nsqlookupd for the producers of one topic.

    One task each, so that a hung nsqlookupd delays no other; `run` owns them. `poke` has all asked
    again soon: for the moment when a connection to an nsqd closes.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        topic: str,
        *,
        rng: random.Random,
        options: LookupOptions = DEFAULTS,
        discovery: Discovery | None = None,
    ) -> None:
        """`discovery` is shared with others. Raises OptionsError for an address that is none."""
        self._lookupds = [Lookupd.parse(address) for address in dict.fromkeys(addresses)]
        self._question = _Producers(topic)
        self._rng = rng
        self._options = options
        self._discovery = discovery or Discovery()
        self._pokes = [asyncio.Event() for _ in self._lookupds]
        self._listed: dict[str, frozenset[str]] = {}
        self._refused: dict[str, tuple[int, str]] = {}
        self._failures: dict[str, int] = {}
        self._asked = [0] * len(self._lookupds)
        self._heard = [0] * len(self._lookupds)
        self._round_ended = asyncio.Event()

    @property
    def producers(self) -> frozenset[str]:
        """`host:port` of every nsqd that the last good answers list."""
        return frozenset().union(*self._listed.values())

    @property
    def has_answer(self) -> bool:
        """Whether any of them has answered."""
        return bool(self._listed)

    @property
    def failing(self) -> dict[str, int]:
        """How many times in a row each nsqlookupd that is failing now has failed."""
        return dict(self._failures)

    def poke(self) -> None:
        """Ask again as soon as `poke_spacing_s` allows; any number of pokes is one question."""
        for poke in self._pokes:
            poke.set()

    async def ask_now(self, timeout_s: float) -> None:
        """Have all asked, and wait until each has answered, or failed, a question put after this call.

        Returns after `timeout_s` in any case. Cancelling it changes nothing.
        """
        self.poke()
        wanted = [asked + 1 for asked in self._asked]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while any(now < then for now, then in zip(self._heard, wanted, strict=True)):
                    self._round_ended.clear()
                    await self._round_ended.wait()

    async def run(self, found: Callable[[frozenset[str]], None]) -> None:
        """Poll until cancelled, which leaves nothing behind.

        `found` is called with `producers` after every good answer, whether or not they changed: a
        producer that is listed still and not connected is to be connected again. It must be quick.
        """
        try:
            async with self._discovery, asyncio.TaskGroup() as group:
                for number in range(len(self._lookupds)):
                    group.create_task(self._poll(number, found))
        finally:
            for listed in self._listed.values():
                self._discovery.listed(listed, frozenset())

    async def _poll(self, number: int, found: Callable[[frozenset[str]], None]) -> None:
        lookupd, poke = self._lookupds[number], self._pokes[number]
        while True:
            poke.clear()
            self._asked[number] += 1
            if await self._ask(lookupd):
                found(self.producers)
            self._heard[number] = self._asked[number]
            self._round_ended.set()
            await self._wait(poke, self._interval_s(lookupd.text))

    async def _ask(self, lookupd: Lookupd) -> bool:
        """Whether it has answered. Of what it said no more is held than was taken: it can be large."""
        try:
            async with self._discovery.turn(lookupd.text) as session:
                answer = await _answer(lookupd, self._question, self._options, session)
        except ConnectionFailed as error:
            self._note_failure(lookupd.text, error)
            return False
        self._note_answer(lookupd.text, answer)
        return True

    def _interval_s(self, address: str) -> float:
        """One that has not answered yet is asked again soon: at a start it may come up after us."""
        interval_s = self._options.lookupd_poll_interval_s
        if address not in self._listed:
            failures = min(self._failures.get(address, 1), _DOUBLINGS_MAX)
            interval_s = min(interval_s, FIRST_ANSWER_S * 2 ** (failures - 1))
        return interval_s

    async def _wait(self, poke: asyncio.Event, interval_s: float) -> None:
        interval_s *= 1 + self._options.lookupd_poll_jitter * (self._rng.random() - 0.5)
        spacing_s = min(self._options.poke_spacing_s, interval_s)
        await asyncio.sleep(spacing_s)
        try:
            async with asyncio.timeout(interval_s - spacing_s):
                await poke.wait()
        except TimeoutError:
            return

    def _note_failure(self, address: str, error: ConnectionFailed) -> None:
        count = self._failures.get(address, 0) + 1
        self._failures[address] = count
        level = logging.WARNING if count == 1 else logging.DEBUG
        topic = self._question.topic
        log.log(level, "lookupd failed topic=%s failures=%d error=%s", topic, count, error)

    def _note_answer(self, address: str, answer: Answer) -> None:
        if failures := self._failures.pop(address, 0):
            log.info("lookupd answers again address=%s failures=%d", address, failures)
        refused = (len(answer.refused), next(iter(answer.refused), ""))
        if refused != self._refused.get(address, (0, "")):
            _warn_of_refused(answer, address)
        self._refused[address] = refused
        before = self._listed.get(address, frozenset())
        self._listed[address] = self._discovery.listed(before, answer.values)
        # What one takes off its list is not kept because another, that fails, had it on its own.
        gone = before - answer.values
        for failing in self._failures.keys() & self._listed.keys():
            kept = self._listed[failing] - gone
            self._listed[failing] = self._discovery.listed(self._listed[failing], kept)
