"""What a store answers beside the content of objects: XML, which botocore reads whole and parses whole.

So it is bounded before that: in bytes, in time, and in elements, each of which takes more memory than it
has bytes. A document type is refused: S3 has none, and what it defines can be larger than what came.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A page of a list: 1000 keys of 1024 characters, each of which may be nine bytes in a URL.
ANSWER_BYTES_MAX = 16 << 20
# Twenty for each of those keys, which begin and end.
TAGS_MAX = 50_000
# As often as one read may wait for its time, an answer may altogether.
_TIMES = 4
_READ_BYTES = 64 << 10
_FIRST_ERROR = 300


def bound(client: Any, timeout_s: float, now: Callable[[], float] = time.monotonic) -> None:
    """Have all that this client of boto3 is answered bounded, but for the content of objects.

    A request whose answer is refused fails with OSError, which is TimeoutError where it took too long.
    """
    session = client._endpoint.http_session

    def send(request: Any, **_: Any) -> Any:
        is_content = request.stream_output
        request.stream_output = True  # nothing is read of it before this
        response = session.send(request)
        if not is_content or response.status_code >= _FIRST_ERROR:
            response.raw = _Bounded(response.raw, now() + _TIMES * timeout_s, now)
            # In UTF-16 there would be other ways to write one.
            if b"<!DOCTYPE" in response.content or b"\0" in response.content:
                raise OSError("the store answered with a document type, or with no text")
        return response

    client.meta.events.register("before-send.s3", send)


class _Bounded:
    """As much of a body as is read, for the one who reads it whole."""

    def __init__(self, raw: Any, until_s: float, now: Callable[[], float]) -> None:
        self._raw = raw
        self._until_s = until_s
        self._now = now

    def stream(self) -> Iterator[bytes]:
        """The pieces of it; raises OSError."""
        size_bytes = tags = 0
        for piece in self._raw.stream(_READ_BYTES):
            size_bytes += len(piece)
            tags += piece.count(b"<")
            if size_bytes > ANSWER_BYTES_MAX:
                raise self._refused(f"more than {ANSWER_BYTES_MAX >> 20} MiB")
            if tags > TAGS_MAX:
                raise self._refused(f"more than {TAGS_MAX} tags")
            if self._now() > self._until_s:
                self._raw.close()
                raise TimeoutError
            yield piece

    def _refused(self, what: str) -> OSError:
        self._raw.close()
        return OSError(f"the store answered with {what}")
