"""Where a redirect leads, and whether anybody goes there. Decisions only.

A POST goes where 307 and 308 send it, with its method and its body. 301, 302 and 303 would make a GET of
it, which loses the body: they are not followed. A GET goes wherever it is sent. What a Location says is
an endpoint's word and no more: it is bounded, it is a URL and nothing else, it never leads from https to
http, and it names no credentials.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from nsqtools.outputs.http.routed import LOCATION_BYTES_MAX
from nsqtools.outputs.http.url import Url, split_url

if TYPE_CHECKING:
    from nsqtools.outputs.http.request import Method
    from nsqtools.outputs.http.url import Origin

REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEEP_METHOD = frozenset({307, 308})
# What RFC 3986 lets stand in a URL.
_CHARACTERS = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+", re.ASCII)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_AUTHORITY = re.compile(r"[^/?#]*//([^/?#]*)")
# Relative to it a path is joined; it is not asked.
_SOMEWHERE = "http://h"


def check_method(status: int, method: Method) -> None:
    """Raises ValueError where a request would lose its body."""
    if method != "GET" and status not in _KEEP_METHOD:
        raise ValueError(f"{status} makes a GET of a {method}, without its body")


def resolve(location: str, base: Url) -> Url:
    """The URL that a reply of `base` leads to; its target is no template.

    Raises ValueError with the reason, which tells nothing of the Location itself: it can hold a secret.
    """
    if not location:
        raise ValueError("it has no Location")
    if len(location) > LOCATION_BYTES_MAX:
        raise ValueError(f"its Location has more than {LOCATION_BYTES_MAX} bytes")
    if not _CHARACTERS.fullmatch(location):
        raise ValueError("its Location is not one URL")
    location = location.partition("#")[0]
    scheme = _SCHEME.match(location)
    if scheme is None and not location.startswith("//"):
        target = urljoin(_SOMEWHERE + base.target, location).removeprefix(_SOMEWHERE)
        return Url(origin=base.origin, authority=base.authority, target=target or "/")
    if scheme is None:
        location = f"{'https' if base.origin.is_tls else 'http'}:{location}"
    elif scheme[1].lower() not in ("http", "https"):
        raise ValueError("its Location is no http or https URL")
    return _elsewhere(location, base)


def _elsewhere(location: str, base: Url) -> Url:
    authority = _AUTHORITY.match(location)
    if authority and "@" in authority[1]:
        raise ValueError("its Location holds credentials")
    try:
        url = split_url(location, {})
    except ValueError as error:
        raise ValueError(f"its Location: {error}") from None
    if base.origin.is_tls and not url.origin.is_tls:
        raise ValueError("it leads from https to http")
    if _in_lower_case(url.origin) == _in_lower_case(base.origin):
        return replace(url, origin=base.origin)
    return url


def _in_lower_case(origin: Origin) -> Origin:
    return replace(origin, host=origin.host.lower())
