"""The broker's topics and channels as metrics, read from it when somebody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nsqtools.broker.channel import Channel
    from nsqtools.broker.topic import Topic
    from nsqtools.broker.view import BrokerView
    from nsqtools.observe.counters import Counter, Family, Gauge, Registry
    from nsqtools.observe.health import Health

_PART = "publishing"


class BrokerMetrics:
    """Registers the metrics of a broker. What is deleted is no longer shown."""

    def __init__(self, broker: BrokerView, registry: Registry) -> None:
        self._broker = broker
        self._published = registry.counter(
            "nsqtools_topic_messages_published_total", "messages since the start", "topic"
        )
        self._bytes = registry.counter(
            "nsqtools_topic_bodies_bytes_total", "their bodies since the start", "topic"
        )
        self._dropped = registry.counter(
            "nsqtools_topic_dropped_messages_total",
            "messages that an ephemeral topic (no_room), or channels (ephemeral, sampling) dropped",
            "topic",
            "reason",
        )
        self._channels = {
            name: registry.gauge(f"nsqtools_channel_{name}", text, "topic", "channel")
            for name, text in (
                ("depth_messages", "messages that wait"),
                ("in_flight_messages", "messages that consumers hold"),
                ("deferred_messages", "messages that are deferred"),
                ("consumers_count", "subscribed connections"),
            )
        }
        self._sessions = registry.gauge("nsqtools_broker_connections_count", "TCP connections")
        self._sessions_max = registry.gauge(
            "nsqtools_broker_connections_max_count", "TCP connections that there may be"
        )
        self._refused = registry.counter(
            "nsqtools_broker_connections_refused_total",
            "connections that were closed at once: there were too many",
        )
        registry.before_snapshot(self._refresh)

    def _refresh(self) -> None:
        self._sessions.labels().set(len(self._broker.sessions))
        admission = self._broker.admission
        self._sessions_max.labels().set(admission.tcp_max)
        self._refused.labels().value = admission.refused_count
        families: list[Family[Counter] | Family[Gauge]]
        families = [self._published, self._bytes, self._dropped, *self._channels.values()]
        for family in families:
            family.clear()
        for topic in self._broker.topics.values():
            self._published.labels(topic=topic.name).value += topic.message_count
            self._bytes.labels(topic=topic.name).value += topic.message_bytes
            self._count_dropped(topic)
            for channel in topic.channels.values():
                self._read(topic.name, channel)

    def _count_dropped(self, topic: Topic) -> None:
        of_channels = sum(channel.dropped_count for channel in topic.channels.values())
        for reason, dropped in (("no_room", topic.dropped_count), ("of_channel", of_channels)):
            if dropped:
                self._dropped.labels(topic=topic.name, reason=reason).value += dropped

    def _read(self, topic: str, channel: Channel) -> None:
        values = {
            "depth_messages": channel.depth,
            "in_flight_messages": channel.in_flight,
            "deferred_messages": channel.deferred,
            "consumers_count": len(channel.subscribers),
        }
        for name, value in values.items():
            # Beyond the bound of a metric, what shares one place is added up.
            self._channels[name].labels(topic=topic, channel=channel.name).add(value)


def tell_health(broker: BrokerView, health: Health) -> None:
    """What /ping says, as the health of a part."""
    if broker.health == "OK":
        health.ok(_PART)
    else:
        health.failing(_PART, broker.health)
