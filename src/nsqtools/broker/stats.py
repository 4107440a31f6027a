"""What /stats says: the spec's JSON, key by key in nsqd's order, and its text (spec: nsqd-http, 2.4).

Pure: the broker's objects in, plain values out. What nsqd measures and this broker does not is shown
as nsqd shows it when it is switched off: latencies are empty, nobody is authenticated. `memory` is
Go's; of it there is what Python has: bytes in use, and runs of the collector.

nsqd names one topic of each producer only, by mistake; here all of them are named.
"""

from __future__ import annotations

import datetime as dt
import gc
import platform
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from nsqtools.broker.session import Session
from nsqtools.observe.process import resident_bytes
from nsqtools.options import render_duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsqtools.broker.channel import Channel
    from nsqtools.broker.consumers import Subscriber
    from nsqtools.broker.topic import Topic
    from nsqtools.broker.view import BrokerView

Json = dict[str, Any]

PROTOCOL = "V2"
_E2E_OFF: Json = {"count": 0, "percentiles": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsQuery:
    """What of the statistics is wanted; an empty name means all."""

    topic: str = ""
    channel: str = ""
    include_clients: bool = True
    include_mem: bool = True


def stats(broker: BrokerView, query: StatsQuery, version: str) -> Json:
    """The object that GET /stats?format=json answers with."""
    topics, producers = _selected(broker, query)
    result: Json = {
        "version": version,
        "health": broker.health,
        "start_time": broker.start_time_s,
        "topics": topics,
    }
    if query.include_mem:
        result["memory"] = memory_stats()
    result["producers"] = producers
    return result


def _selected(broker: BrokerView, query: StatsQuery) -> tuple[list[Json] | None, list[Json] | None]:
    """Topics, None when the one that is asked for does not exist, and producers, None for none."""
    if query.topic and query.topic not in broker.topics:
        return None, None
    chosen = [broker.topics[query.topic]] if query.topic else _by_name(broker.topics.values())
    topics = [
        topic_stats(topic, query)
        for topic in chosen
        if not query.channel or query.channel in topic.channels
    ]
    producers = [session for session in broker.sessions if session.pub_counts]
    if not query.include_clients or not producers:
        return topics, None
    return topics, [client_stats(session, query.topic) for session in producers]


def _by_name(topics: Iterable[Topic]) -> list[Topic]:
    return sorted(topics, key=attrgetter("name"))


def topic_stats(topic: Topic, query: StatsQuery) -> Json:
    channels = sorted(topic.channels.values(), key=attrgetter("name"))
    if query.channel:
        channels = [channel for channel in channels if channel.name == query.channel]
    return {
        "topic_name": topic.name,
        "channels": [channel_stats(channel, query) for channel in channels],
        "depth": topic.depth,
        "backend_depth": topic.backend_depth,
        "message_count": topic.message_count,
        "message_bytes": topic.message_bytes,
        # nsqd has no such key: what it drops of ephemeral topics and channels nobody learns.
        **_unless_empty("dropped_count", topic.dropped_count),
        # Nor has nsqd a log.
        "retained": _retained(topic),
        "paused": topic.paused,
        "e2e_processing_latency": _E2E_OFF,
    }


def _retained(topic: Topic) -> Json:
    """What of the log there is: the ids where it begins and goes on, messages, bytes on the disk."""
    log = topic.log
    return {
        "first_id": f"{log.start:016x}",
        "next_id": f"{log.end:016x}",
        "message_count": log.count(log.start, log.end),
        "bytes": log.size_bytes,
    }


def channel_stats(channel: Channel, query: StatsQuery) -> Json:
    clients = channel.subscribers
    result: Json = {
        "channel_name": channel.name,
        "depth": channel.depth,
        "backend_depth": channel.backend_depth,
        "in_flight_count": channel.in_flight,
        "deferred_count": channel.deferred,
        "message_count": channel.message_count,
        # Without topology every delivery is a global one; zero is left out.
        **_unless_empty("global_msg_count", channel.delivered_count),
        **_unless_empty("dropped_count", channel.dropped_count),
        "requeue_count": channel.requeue_count,
        "timeout_count": channel.timeout_count,
        "client_count": len(clients),
        "clients": _clients(clients, query.topic) if query.include_clients else None,
        "paused": channel.paused,
        "e2e_processing_latency": _E2E_OFF,
    }
    return result


def _clients(subscribers: Iterable[Subscriber], topic: str) -> list[Json]:
    return [client_stats(one, topic) for one in subscribers if isinstance(one, Session)]


def client_stats(session: Session, topic: str) -> Json:
    """One connection, as consumer or as producer; `topic` bounds what is said of its publishes."""
    settings = session.settings
    counts = [
        {"topic": name, "count": count}
        for name, count in sorted(session.pub_counts.items())
        if not topic or name == topic
    ]
    return {
        "client_id": session.client_id,
        "hostname": session.hostname,
        "version": PROTOCOL,
        "remote_address": session.remote_address,
        "state": int(session.state),
        "ready_count": session.ready_count,
        "in_flight_count": session.in_flight,
        "message_count": session.message_count,
        "finish_count": session.finish_count,
        "requeue_count": session.requeue_count,
        "connect_ts": session.connected_at_s,
        "sample_rate": session.sample_rate,
        "deflate": settings.deflate,
        "snappy": settings.snappy,
        "user_agent": settings.user_agent,
        "topology_zone": settings.topology_zone,
        "topology_region": settings.topology_region,
        **_unless_empty("pub_counts", counts),
        "tls": settings.tls_v1,
        "tls_cipher_suite": "",
        "tls_version": "",
        "tls_negotiated_protocol": "",
        "tls_negotiated_protocol_is_mutual": False,
    }


def _unless_empty(key: str, value: object) -> Json:
    return {key: value} if value else {}


def memory_stats() -> Json:
    """Of nsqd's nine figures those that Python has; the others are 0."""
    return {
        "heap_objects": 0,
        "heap_idle_bytes": 0,
        "heap_in_use_bytes": resident_bytes(),
        "heap_released_bytes": 0,
        "gc_pause_usec_100": 0,
        "gc_pause_usec_99": 0,
        "gc_pause_usec_95": 0,
        "next_gc_bytes": 0,
        "gc_total_runs": sum(generation["collections"] for generation in gc.get_stats()),
    }


# Text


def stats_text(broker: BrokerView, query: StatsQuery, version: str, now_s: float) -> str:
    """What GET /stats answers with; `now_s` is wall time in seconds."""
    topics, producers = _selected(broker, query)
    started = dt.datetime.fromtimestamp(broker.start_time_s, dt.UTC)
    lines = [
        f"nsqd v{version} (built w/python{platform.python_version()})",
        f"start_time {started:%Y-%m-%dT%H:%M:%SZ}",
        f"uptime {go_duration(max(0.0, now_s - broker.start_time_s))}",
        "",
        f"Health: {broker.health}",
    ]
    if query.include_mem:
        lines += ["", "Memory:"]
        lines += [f"   {name:<25}\t{value}" for name, value in memory_stats().items()]
    lines += ["", "Topics:" if topics else "Topics: None"]
    for number, topic in enumerate(topics or ()):
        lines += ([""] if number else []) + _topic_lines(topic, now_s)
    lines += ["", "Producers:" if producers else "Producers: None"]
    lines += [f"   {_client_line(producer, now_s)}" for producer in producers or ()]
    return "\n".join(lines) + "\n"


def _topic_lines(topic: Json, now_s: float) -> list[str]:
    head = (
        f"{'*P ' if topic['paused'] else '   '}[{topic['topic_name']:<15}]"
        f" depth: {topic['depth']:<5} be-depth: {topic['backend_depth']:<5}"
        f" msgs: {topic['message_count']:<8} e2e%: {_dropped(topic)}"
    )
    lines = [head]
    for channel in topic["channels"]:
        lines.append(
            f"{'   *P ' if channel['paused'] else '      '}[{channel['channel_name']:<25}]"
            f" depth: {channel['depth']:<5} be-depth: {channel['backend_depth']:<5}"
            f" inflt: {channel['in_flight_count']:<4} def: {channel['deferred_count']:<4}"
            f" re-q: {channel['requeue_count']:<5} timeout: {channel['timeout_count']:<5}"
            f" msgs: {channel['message_count']:<8} e2e%: {_dropped(channel)}"
        )
        lines += [f"        {_client_line(client, now_s)}" for client in channel["clients"] or ()]
    return lines


def _dropped(counts: Json) -> str:
    dropped = counts.get("dropped_count", 0)
    return f"dropped: {dropped}" if dropped else ""


def _client_line(client: Json, now_s: float) -> str:
    port = client["remote_address"].rpartition(":")[2]
    name = f"{client['hostname']}:{port} {client['user_agent']}"
    # A client names itself; what it says must not forge lines of this page.
    name = "".join(char if char.isprintable() else "?" for char in name)
    connected = go_duration(max(0, int(now_s) - client["connect_ts"]))
    counts = client.get("pub_counts", [])
    if counts:
        total = sum(entry["count"] for entry in counts)
        topics = ",".join(f"{entry['topic']}={entry['count']}" for entry in counts)
        said = f"msgs: {total:<8} topics: {topics}"
    else:
        said = (
            f"state: {client['state']} inflt: {client['in_flight_count']:<4}"
            f" rdy: {client['ready_count']:<4} fin: {client['finish_count']:<8}"
            f" re-q: {client['requeue_count']:<8} msgs: {client['message_count']:<8}"
        )
    return f"[{client['version']} {name:<21}] {said} connected: {connected}"


def go_duration(seconds: float) -> str:
    """Seconds as Go prints a duration: `1h0m2.5s`, and below a second `250ms`."""
    if 0 < seconds < 1:
        return render_duration(seconds)
    minutes, rest_s = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{rest_s:.9f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
