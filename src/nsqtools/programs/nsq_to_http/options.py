"""The options of nsq_to_http: what every consuming tool has, and those of delivery by HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nsqtools import __version__
from nsqtools.client.options import MAX_IN_FLIGHT_MAX, ProducerOptions, producer_options
from nsqtools.errors import OptionsError
from nsqtools.options import NAME_VALUE, Int, Setting, option, repeated
from nsqtools.outputs.http.options import HttpOptions
from nsqtools.pipeline.options import (
    LEFT_NO_TOPIC,
    ConsumingOptions,
    channel_option,
    log_prefix_option,
)
from nsqtools.wire.names import is_valid_name

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True)
class NsqToHttpOptions(HttpOptions, ConsumingOptions):
    """One run of nsq_to_http."""

    program: ClassVar[str] = "nsq_to_http"
    channel: str = channel_option("nsq_to_http")
    log_prefix: str = log_prefix_option("[nsq_to_http] ")
    max_in_flight: int = option(
        Int(minimum=1, maximum=MAX_IN_FLIGHT_MAX),
        default="2500",
        help="messages held at a time, over all nsqds of a topic: on their way, or waiting for"
        " another try",
        group="Where messages come from",
    )
    producer_opt: tuple[Setting, ...] = repeated(
        NAME_VALUE,
        help="setting of the producer of the dead letter topic, such as tls_v1",
        group="What is never taken",
    )

    def check(self) -> Iterator[str]:
        """And what concerns both halves."""
        yield from super().check()
        if self.dead_letter_topic and not (
            self.dead_letter_nsqd_tcp_address or self.nsqd_tcp_address
        ):
            yield "--dead-letter-topic needs --dead-letter-nsqd-tcp-address"
        letter = self.dead_letter_topic
        for topic in self.topic if letter and letter != "{topic}" else ():
            name = self.dead_letter_topic_of(topic)
            if name == topic or not is_valid_name(name):
                yield f"--dead-letter-topic of {topic} would be {name}, which cannot be"
        yield from (f"--producer-opt: {problem}" for problem in self._producer()[1])

    def wants_topic(self, topic: str) -> bool:
        """Not what is a dead letter already: it would come back for ever."""
        return not self._is_dead_letter(topic) and super().wants_topic(topic)

    def _is_dead_letter(self, topic: str) -> bool:
        before, place, after = self.dead_letter_topic.partition("{topic}")
        if not place:
            return topic == before
        own = len(topic) > len(before) + len(after)
        return own and topic.startswith(before) and topic.endswith(after)

    def producer(self) -> ProducerOptions:
        """Of the dead letter topic; raises OptionsError where `check` was not heeded."""
        options, problems = self._producer()
        if problems:
            raise OptionsError(problems)
        return options

    def _producer(self) -> tuple[ProducerOptions, list[str]]:
        return producer_options(
            self.producer_opt,
            auth_secret=self.auth_secret,
            auth_plaintext=self.auth_plaintext,
            user_agent=f"{self.program}/{__version__} nsqtools/{__version__}",
        )

    def _check_sources(self) -> Iterator[str]:
        """In the words of NSQ's tool, where they differ from those of nsq_to_file."""
        filters = self.topic_pattern is not None or self.topic_exclude is not None
        for problem in super()._check_sources():
            if problem == LEFT_NO_TOPIC and not filters:
                if self.dead_letter_topic_of(self.topic[0]) == self.topic[0]:
                    continue  # which is told elsewhere
                problem = "--dead-letter-topic leaves no --topic: they are dead letters themselves"
            yield {
                "--topic or --topic-pattern required": "--topic and --channel are required",
                "--nsqd-tcp-address or --lookupd-http-address required.": (
                    "--nsqd-tcp-address or --lookupd-http-address required"
                ),
            }.get(problem, problem)
