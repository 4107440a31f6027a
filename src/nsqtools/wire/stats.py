"""What an nsqd says of a channel's clients in `/stats?format=json` (spec: nsqd-http)."""

from __future__ import annotations

from dataclasses import dataclass

from nsqtools.errors import ProtocolError
from nsqtools.wire.gojson import JsonFields, MalformedJson

# Of what others say of themselves.
TEXT_LENGTH_MAX = 100


@dataclass(frozen=True, slots=True, order=True)
class ChannelClient:
    """One consumer: both are what it said in IDENTIFY, whatever that is."""

    user_agent: str
    hostname: str


def parse_channel_clients(body: bytes, topic: str, channel: str) -> list[ChannelClient]:
    """The clients of one channel; none when the nsqd does not have it. Raises ProtocolError."""
    try:
        fields = JsonFields.decode(body)
        if "topics" not in fields and "data" in fields:
            fields = fields.section("data")  # as it was before 1.0
        return [
            ChannelClient(
                client.text("user_agent")[:TEXT_LENGTH_MAX],
                client.text("hostname")[:TEXT_LENGTH_MAX],
            )
            for one in fields.sections("topics")
            if one.text("topic_name") == topic
            for each in one.sections("channels")
            if each.text("channel_name") == channel
            for client in each.sections("clients")
        ]
    except MalformedJson as error:
        raise ProtocolError("E_INVALID", f"answer not understood: {error}") from error
