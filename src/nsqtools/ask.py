"""Questions over HTTP to the programs of NSQ: one GET, bounded in time and size.

Whoever answers may be slow, hung or hostile: nothing is decompressed, no cookie is kept, an answer
beyond ANSWER_BYTES_MAX is refused. aiohttp is imported with the first question: programs that never
ask do not pay for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nsqtools.errors import ConnectionFailed, ProtocolError
from nsqtools.options import mask_passwords

if TYPE_CHECKING:
    import aiohttp

ANSWER_BYTES_MAX = 1 << 20
_READ_BYTES = 65_536
_ACCEPT = "application/vnd.nsq; version=1.0"  # as NSQ's own client asks (spec: lookupd, A6)


def new_session() -> aiohttp.ClientSession:
    """An HTTP session fit for strangers, to be shared and closed by the caller, who bounds how much is
    asked at once. No connection is kept: what is asked next is asked much later, or of another."""
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        headers={"Accept": _ACCEPT, "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        # The limit on an answer is one on what it opens to.
        auto_decompress=False,
    )


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    source: str,
    *,
    connect_timeout_s: float,
    timeout_s: float,
    redirects_max: int = 0,
    secret: str = "",
) -> tuple[int, bytes]:
    """GET a URL, which must be encoded: status and body. `timeout_s` is for all of it.

    `secret` is sent as a bearer token when it is set; a redirect takes it nowhere else. Raises
    ConnectionFailed, with `source` as the address, whatever goes wrong on the way. Cancelling it leaves
    nothing behind.
    """
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    redirects = {"allow_redirects": redirects_max > 0, "max_redirects": max(1, redirects_max)}
    times = (timeout_s, connect_timeout_s)
    return await _request(session, "GET", url, source, times, headers=headers, **redirects)


async def post(
    session: aiohttp.ClientSession, url: str, source: str, *, timeout_s: float
) -> tuple[int, bytes]:
    """POST nothing to a URL, which must be encoded: status and body; as `ask`, without redirects."""
    times = (timeout_s, timeout_s)
    return await _request(session, "POST", url, source, times, allow_redirects=False)


async def _request(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    source: str,
    times_s: tuple[float, float],
    **options: Any,
) -> tuple[int, bytes]:
    import aiohttp
    import yarl

    timeout = aiohttp.ClientTimeout(total=times_s[0], connect=min(times_s))
    try:
        async with session.request(
            method, yarl.URL(url, encoded=True), timeout=timeout, **options
        ) as response:
            return response.status, await _read(response.content)
    except TimeoutError as error:
        raise ConnectionFailed(source, "no answer in time") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        reason = mask_passwords(str(error)) or type(error).__name__
        raise ConnectionFailed(source, reason) from error
    except ProtocolError as error:
        raise ConnectionFailed(source, error.description) from error


def check_status(status: int) -> None:
    """Raises ProtocolError for anything but 200."""
    if status != 200:
        raise ProtocolError("E_INVALID", f"answered with status {status}")


async def _read(content: aiohttp.StreamReader) -> bytes:
    parts: list[bytes] = []
    left = ANSWER_BYTES_MAX
    while part := await content.read(_READ_BYTES):
        parts.append(part)
        left -= len(part)
        if left < 0:
            raise ProtocolError("E_INVALID", f"answer of more than {ANSWER_BYTES_MAX} bytes")
    return b"".join(parts)
