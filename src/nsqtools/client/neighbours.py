"""Who else consumes a channel: asked over HTTP of each nsqd that has the topic.

Nothing depends on the answer, so whoever gives none is passed over.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

from nsqtools.ask import ask, check_status, new_session
from nsqtools.client.lookup import LookupOptions, http_producers
from nsqtools.errors import ConnectionFailed, ProtocolError
from nsqtools.wire.stats import ChannelClient, parse_channel_clients

if TYPE_CHECKING:
    from collections.abc import Sequence

    import aiohttp

# Of the nsqds of a topic; a channel that is shared is shared with most of them.
NSQDS_MAX = 16
CONNECT_TIMEOUT_S = 2.0
TIMEOUT_S = 5.0

log = logging.getLogger("nsqtools.neighbours")


async def clients_of(
    topic: str,
    channel: str,
    *,
    nsqd_http_addresses: Sequence[str] = (),
    lookupd_addresses: Sequence[str] = (),
    options: LookupOptions | None = None,
) -> list[ChannelClient]:
    """The clients of a channel, ourselves included, of every nsqd that answers in time.

    Takes some seconds for each nsqd at the most. Cancelling it leaves nothing behind.
    """
    found: list[ChannelClient] = []
    async with new_session() as session:
        addresses = set(nsqd_http_addresses)
        if lookupd_addresses:
            with contextlib.suppress(ConnectionFailed):
                addresses |= await http_producers(
                    lookupd_addresses, topic, options=options or LookupOptions(), session=session
                )
        for address in itertools.islice(sorted(addresses), NSQDS_MAX):
            try:
                found += await _ask(session, address, topic, channel)
            except (ConnectionFailed, ProtocolError) as failure:
                log.debug("nsqd tells no clients address=%s error=%s", address, failure)
    return found


async def _ask(
    session: aiohttp.ClientSession, address: str, topic: str, channel: str
) -> list[ChannelClient]:
    base = address if "://" in address else f"http://{address}"
    names = f"topic={quote(topic, safe='')}&channel={quote(channel, safe='')}"
    url = f"{base.rstrip('/')}/stats?format=json&{names}&include_mem=false"
    status, body = await ask(
        session, url, address, connect_timeout_s=CONNECT_TIMEOUT_S, timeout_s=TIMEOUT_S
    )
    check_status(status)
    return parse_channel_clients(body, topic, channel)
