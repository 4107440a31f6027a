"""What an HTTP answer of the status endpoint is."""

from __future__ import annotations

from typing import NamedTuple

METHODS = ("GET", "HEAD")
PLAIN = "text/plain; charset=utf-8"
JSON = "application/json; charset=utf-8"


class Page(NamedTuple):
    """One answer."""

    status: int
    content_type: str
    text: str
