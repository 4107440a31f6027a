"""Asking nsqd to move a channel, and telling where it is now."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from nsqtools.ask import new_session, post
from nsqtools.errors import ProtocolError

if TYPE_CHECKING:
    from nsqtools.programs.seek.options import SeekOptions

_HINTS = {
    "TOPIC_NOT_FOUND": "Is it on another nsqd? `curl http://HOST:4151/stats` lists what there is.",
    "CHANNEL_NOT_FOUND": "Is it on another nsqd? `curl http://HOST:4151/stats` lists what there is.",
    "NOT_FOUND": "NSQ's own nsqd cannot do that: it keeps nothing of what was consumed.",
}


async def run(options: SeekOptions) -> int:
    """Move it; what consumers hold and what waited is forgotten. Raises ConnectionFailed, and
    ProtocolError for what nsqd refuses."""
    wanted = {"topic": options.topic, "channel": options.channel, "to": options.to}
    url = f"http://{options.nsqd_http_address}/channel/seek?{urlencode(wanted)}"
    async with new_session() as session:
        status, body = await post(
            session, url, options.nsqd_http_address, timeout_s=options.timeout_s
        )
    answer = _answer(body)
    if status != 200:
        reason = str(answer.get("message", f"status {status}"))
        refusal = ProtocolError("E_SEEK_FAILED", reason)
        refusal.hint = _HINTS.get(reason, "")
        raise refusal
    print(
        f"{options.topic}:{options.channel} goes on at {answer.get('cursor')},"
        f" {answer.get('depth')} messages wait"
    )
    return 0


def _answer(body: bytes) -> dict[str, object]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
