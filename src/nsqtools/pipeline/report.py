"""How a run is, for whoever asks: metrics, health and readiness of its topics, read from them.

Nothing is counted here, and nothing is done on the way of a message: what the parts keep anyway is
read when a page is asked for, and every few seconds for the service manager.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

    from nsqtools.observe.counters import Counter, Family, Gauge, Registry
    from nsqtools.observe.health import Health
    from nsqtools.pipeline.topic import TopicPipeline

# A delivery that takes longer than this is in trouble: a hung disk gives no error.
DELIVERY_LONG_S = 10.0
_TOTALS = {
    "messages": ("pipeline_delivered_messages", "messages that their output has said are done"),
    "body_bytes": ("pipeline_delivered_body_bytes", "their bodies"),
    "deliveries": ("pipeline_finished_deliveries", "deliveries that an output has answered"),
    "again": ("pipeline_held_messages", "messages that an output wanted again later"),
    "requeued": ("pipeline_requeued_messages", "messages that were given back to nsqd"),
    "disconnected": ("pipeline_disconnected_messages", "messages forgotten with their connection"),
    "unsettled": (
        "pipeline_unsettled_messages",
        "done, but their connection was gone: may be double",
    ),
    "fin_failed": ("pipeline_late_messages", "done, but nsqd refused the FIN: may be double"),
}
_CONSUMER_TOTALS = {
    "received": ("consumer_received_messages", "messages that came"),
    "connections_lost": ("consumer_lost_connections", "connections that ended"),
    "connect_failed": ("consumer_failed_connects", "connections that could not be made"),
    "oversized": ("consumer_oversized_messages", "messages too large, left with nsqd"),
}
_GAUGES = {
    "consumer_in_flight_messages": "messages that were delivered and not settled",
    "consumer_held_bytes": "what they take in memory, roughly",
    "consumer_connected_nsqds": "connections that are subscribed",
    "consumer_missing_nsqds": "nsqds that should be connected and are not",
    "pipeline_oldest_unsettled_seconds": "how long the oldest message in flight has been here",
    "pipeline_last_delivery_timestamp_seconds": "when messages were last done, since the epoch",
    "pipeline_lag_seconds": "between publishing and done, of the last delivery's first message",
    "pipeline_failing_topics": "1 while the topic stands still",
}


class RunMetrics:
    """Registers the metrics of a run's topics. A topic that is gone is no longer shown."""

    def __init__(
        self,
        pipelines: Collection[TopicPipeline],
        registry: Registry,
        *,
        failed: Collection[str] = (),
    ) -> None:
        """`pipelines` is looked at anew each time, and so is `failed`: topics that have none now."""
        self._pipelines = pipelines
        self._failed = failed
        self._registry = registry
        self._counters = {
            name: registry.counter(f"nsqtools_{metric}_total", text, "topic")
            for name, (metric, text) in (_TOTALS | _CONSUMER_TOTALS).items()
        }
        self._refused = registry.counter(
            "nsqtools_pipeline_refused_messages_total",
            "messages that the output cannot take, left with nsqd",
            "topic",
            "reason",
        )
        self._removed = registry.counter(
            "nsqtools_pipeline_removed_messages_total",
            "messages that were filtered out, and finished",
            "topic",
            "by",
        )
        self._gauges = {
            name: registry.gauge(f"nsqtools_{name}", text, "topic")
            for name, text in _GAUGES.items()
        }
        self._outputs: dict[str, Family[Counter]] = {}
        registry.before_snapshot(self._refresh)

    def _refresh(self) -> None:
        families: list[Family[Counter] | Family[Gauge]]
        families = [*self._counters.values(), *self._gauges.values()]
        families += [self._refused, self._removed]
        for family in (*families, *self._outputs.values()):
            family.clear()
        for pipeline in self._pipelines:
            self._count(pipeline)
            for name, value in _gauges_of(pipeline).items():
                self._gauges[name].labels(topic=pipeline.topic).add(value)
        for topic in self._failed:
            self._gauges["pipeline_failing_topics"].labels(topic=topic).add(1)

    def _count(self, pipeline: TopicPipeline) -> None:
        topic = pipeline.topic
        own = pipeline.totals()
        for name in _TOTALS:
            self._counters[name].labels(topic=topic).add(own[name])
        for name in _CONSUMER_TOTALS:
            self._counters[name].labels(topic=topic).add(pipeline.consumer.counts[name])
        for reason, count in pipeline.counts.reasons.items():
            self._refused.labels(topic=topic, reason=reason).add(count)
        for by, count in pipeline.counts.removed_by.items():
            self._removed.labels(topic=topic, by=by).add(count)
        for name, value in pipeline.output_counts().items():
            self._output(name).labels(topic=topic).add(value)

    def _output(self, name: str) -> Family[Counter]:
        """What an output counts, by its own word."""
        if name not in self._outputs:
            text = f"{name.replace('_', ' ')} of the output"
            made = self._registry.counter(f"nsqtools_output_{name}_total", text, "topic")
            self._outputs[name] = made
        return self._outputs[name]


def _gauges_of(pipeline: TopicPipeline) -> dict[str, float]:
    consumer = pipeline.consumer
    return {
        "consumer_in_flight_messages": consumer.in_flight,
        "consumer_held_bytes": consumer.held_bytes,
        "consumer_connected_nsqds": consumer.connections,
        "consumer_missing_nsqds": len([address for address in consumer.unconnected if address]),
        "pipeline_oldest_unsettled_seconds": consumer.oldest_age_s,
        "pipeline_last_delivery_timestamp_seconds": pipeline.last_delivery_time_s,
        "pipeline_lag_seconds": pipeline.lag_s,
        "pipeline_failing_topics": float(bool(trouble_of(pipeline))),
    }


def tell_health(pipelines: Collection[TopicPipeline], health: Health) -> None:
    """What each topic waits for and what of it fails.

    A topic is waited for until it is subscribed, or it is known why it is not: then it fails with
    that reason, and the service manager need not wait.
    """
    for pipeline in pipelines:
        part = part_of(pipeline.topic)
        trouble = trouble_of(pipeline)
        if trouble:
            health.failing(part, trouble)
        else:
            health.ok(part)
        if trouble or is_settled(pipeline):
            health.ready(part)


def part_of(topic: str) -> str:
    """The name of a topic's part in the health of the run."""
    return f"topic {topic}"


def trouble_of(pipeline: TopicPipeline) -> str:
    """Why the topic does not flow; nothing when it does, or when that is not known yet."""
    if pipeline.trouble:
        return pipeline.trouble
    if trouble := pipeline.output_trouble():
        return trouble  # which may say what a delivery hangs at
    if pipeline.delivering_s > pipeline.output.feeding.holds_s + DELIVERY_LONG_S:
        return f"a delivery has been under way for {pipeline.delivering_s:.0f} s"
    consumer = pipeline.consumer
    reasons = [reason for address, reason in consumer.unconnected.items() if address and reason]
    if reasons:
        return f"not subscribed: {'; '.join(reasons)}"
    if not consumer.connections and consumer.failing_lookupds:
        return f"no nsqd to consume from, and no answer of {', '.join(consumer.failing_lookupds)}"
    return ""


def is_settled(pipeline: TopicPipeline) -> bool:
    """Whether it is subscribed everywhere it should be, or there is no nsqd that has the topic."""
    missing = pipeline.consumer.unconnected
    return pipeline.is_open and (
        not missing or (missing.keys() == {""} and pipeline.consumer.has_asked)
    )


def status_of(pipeline: TopicPipeline) -> dict[str, Any]:
    """A topic in /status."""
    return {
        "channel": pipeline.consumer.channel,
        "trouble": trouble_of(pipeline),
        "not_subscribed": pipeline.consumer.unconnected,
        **dict(pipeline.totals()),
        **{name: round(value, 3) for name, value in _gauges_of(pipeline).items()},
    }
