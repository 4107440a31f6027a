"""What a replay has read and published, as metrics that are read when somebody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nsqtools.observe.counters import Registry
    from nsqtools.replay.run import Replay


def register(replay: Replay, registry: Registry) -> None:
    """Adds the metrics of one run to a registry."""
    names = {
        "read_records": "records that were read",
        "published_messages": "messages that nsqd said OK to",
        "published_bytes": "their bodies",
        "sent_again_messages": "messages that were sent again and may be there twice",
    }
    counters = {
        name: registry.counter(f"nsqtools_replay_{name}_total", text).labels()
        for name, text in names.items()
    }
    dropped = registry.counter(
        "nsqtools_replay_dropped_messages_total", "messages that were not published", "reason"
    )
    unanswered = registry.gauge(
        "nsqtools_replay_unanswered_messages", "messages that were taken and are not settled"
    ).labels()

    def refresh() -> None:
        counts, played = replay.counts, replay.player.counts
        counters["read_records"].value = counts.records
        counters["published_messages"].value = played.messages
        counters["published_bytes"].value = played.body_bytes
        counters["sent_again_messages"].value = played.sent_again
        dropped.labels(reason="empty").value = counts.empty
        dropped.labels(reason="too big").value = counts.too_big
        dropped.labels(reason="refused by nsqd").value = played.refused
        unanswered.set(played.unanswered)

    registry.before_snapshot(refresh)
